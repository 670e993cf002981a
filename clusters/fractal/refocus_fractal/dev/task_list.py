"""From this list, `fractal-manifest create` makes the manifest"""
from fractal_task_tools.task_models import CompoundTask

AUTHORS = 'The refocus_nbdev developers'
DOCS_LINK = 'https://github.com/refocus-nbdev/refocus_nbdev'

TASK_LIST = [CompoundTask(
    name='Refocus Plate', executable_init='init_plate.py', executable='refocus_field.py',
    input_types=dict(refocused=False), output_types=dict(refocused=True),
    meta_init=dict(cpus_per_task=1, mem=2000), meta=dict(cpus_per_task=2, mem=4000),
    category='Image Processing', modality='HCS', tags=['Preprocessing', 'Deconvolution', 'Refocusing'])]
