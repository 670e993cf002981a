"""Writes what all fields of the refocused plates share"""
import re
from pathlib import Path
from pydantic import validate_call
from refocus_nbdev.cli.app import load_refocuser
from refocus_nbdev.io.hcs import version_of
from refocus_nbdev.refocus.plan import plan_plate
from refocus_nbdev.refocus.frames import start_plate

def _new_name(plate):
    "Such as screen_refocused.ome.zarr for screen.ome.zarr"
    name,ending = re.fullmatch(r'(.+?)((?:\.ome)?\.zarr)?', plate.name, re.I).groups()
    return f'{name}_refocused{ending or ".zarr"}'

def _jobs_of(plate, wanted, zarr_dir, options):
    "The jobs of the wanted images of a plate; also writes the metadata of their results"
    out,version = Path(zarr_dir)/_new_name(plate),version_of(plate)
    jobs = [j for j in plan_plate(plate, out, version) if j.source in wanted]
    refocuser = load_refocuser(options['model'], 'cpu', options['blur_per_um'], 0, 1)
    if jobs: start_plate(jobs, plate, out, refocuser, version, options['overwrite'])
    return jobs

def _place(job):
    "Where a field lies, for `refocus_field`"
    field = job.field
    return dict(origin=str(job.source), well=field.well, plate=field.plate, place=field.place, row_path=str(job.row_path))

@validate_call
def init_plate(
    *,
    zarr_urls: list[str],
    zarr_dir: str,
    model: str = 'general',
    blur_per_um: float | None = None,
    overwrite: bool = False,
) -> dict:
    """Write what all fields of the refocused plates share.

    Args:
        zarr_urls: Paths of the images; each must be a field of an OME-Zarr plate. Fractal gives them.
        zarr_dir: Folder for the new plates; a plate `a.ome.zarr` becomes `a_refocused.ome.zarr`. Fractal gives it.
        model: Name of a shipped model of refocus, or path of a model file.
        blur_per_um: Blur of your microscope, um per um out of focus; if it is not set, that of the model.
        overwrite: Refocus fields again that are done. Without it, they stay as they are.
    """
    options = dict(model=model, blur_per_um=blur_per_um, overwrite=overwrite)
    wanted = {Path(url).absolute() for url in zarr_urls}
    found = []
    for plate in sorted({url.parents[2] for url in wanted}):
        jobs = _jobs_of(plate, wanted, zarr_dir, options)
        found += [dict(zarr_url=str(j.target), init_args=_place(j)|options) for j in jobs]
    if unknown := wanted-{Path(item['init_args']['origin']) for item in found}:
        raise ValueError(f'{min(unknown)}: is no field of an OME-Zarr plate; give images of plates only')
    return dict(parallelization_list=found)

if __name__=='__main__':
    from fractal_task_tools.task_wrapper import run_fractal_task
    run_fractal_task(task_function=init_plate)
