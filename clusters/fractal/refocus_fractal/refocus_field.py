"""Refocuses one field of a plate"""
from pathlib import Path
from pydantic import BaseModel, validate_call
from refocus_nbdev.cli.app import load_refocuser
from refocus_nbdev.judge.plate_tables import field_rows
from refocus_nbdev.plates.fields import FieldFile, PlateField
from refocus_nbdev.refocus.fieldjobs import FieldJob
from refocus_nbdev.refocus.plates import run_fields

class InitArgs(BaseModel):
    """What `init_plate` tells about a field

    Attributes:
        origin: Path of the image.
        well: Name of the well, such as B07.
        plate: Name of the plate.
        place: Path of the field in its plate, such as B/7/0.
        row_path: Path for the facts about the result.
        model: See `init_plate`, as for the others.
    """
    origin: str
    well: str
    plate: str
    place: str
    row_path: str
    model: str
    blur_per_um: float | None = None
    overwrite: bool = False

@validate_call
def refocus_field(*, zarr_url: str, init_args: InitArgs) -> dict:
    """Refocus one field of a plate; a field that is done stays as it is.

    Args:
        zarr_url: Path of the new image. Fractal gives it.
        init_args: What `init_plate` tells about the field.
    """
    a,source,target = init_args,Path(init_args.origin),Path(zarr_url)
    field = PlateField(a.well, source.name, (FieldFile(source),), a.plate, a.place)
    job = FieldJob(source, target, field=field, row_path=Path(a.row_path))
    run_fields([job], load_refocuser(a.model, 'auto', a.blur_per_um, 0, 1), field_rows, overwrite=a.overwrite)
    if job.status=='failed': raise RuntimeError(job.note)
    image = dict(zarr_url=zarr_url, origin=a.origin, attributes=dict(plate=target.parents[2].name))
    return dict(image_list_updates=[image])

if __name__=='__main__':
    from fractal_task_tools.task_wrapper import run_fractal_task
    run_fractal_task(task_function=refocus_field)
