"""The memory and time of `refocus run` on one large image, made of the sample plate over and over

python tests/slide.py 20000 tif nuclei-fast
"""
import resource, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, tifffile

ROOT = Path(__file__).resolve().parents[1]

def slide(path, n, tile=512):
    "An image of n x n pixels, 16 bits, in tiles, written one after the other"
    fields = np.stack([tifffile.imread(f) for f in sorted((ROOT/'data'/'sample'/'BBBC006_v1_images_z_10').glob('*_w1*'))[:4]])
    field = np.block([[fields[0], fields[1]], [fields[2], fields[3]]])[:tile,:tile]
    across = -(-n//tile)
    if path.suffix=='.tif': return tifffile.imwrite(path, (field for _ in range(across**2)), shape=(n,n), dtype=field.dtype, tile=(tile,tile), compression='zlib', photometric='minisblack', resolution=(1e4/0.645,)*2, resolutionunit='CENTIMETER')
    import zarr
    group = zarr.open_group(str(path), mode='w', zarr_format=3)
    array = group.create_array('0', shape=(n,n), dtype=field.dtype, chunks=(tile,tile))
    for i in range(across): array[i*tile:(i+1)*tile] = np.tile(field, (1, across))[:min(tile, n-i*tile), :n]
    scale = dict(type='scale', scale=[0.645,0.645])
    group.attrs['ome'] = dict(version='0.5', multiscales=[dict(axes=[dict(name=a, type='space', unit='micrometer') for a in 'yx'], datasets=[dict(path='0', coordinateTransformations=[scale])])])

def main(n=20_000, kind='tif', model='nuclei-fast'):
    with tempfile.TemporaryDirectory() as d:
        made = subprocess.run([sys.executable, '-c', f'import slide; from pathlib import Path; slide.slide(Path({d!r})/"slide.{kind}", {n})'], cwd=Path(__file__).parent)
        made.check_returncode()
        start = time.perf_counter()
        subprocess.run([sys.executable, '-m', 'refocus_nbdev.cli', 'run', f'{d}/slide.{kind}', '--out', f'{d}/out', '--model', model], check=True)
        seconds,gb = time.perf_counter()-start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1e6
    print(f'{n} x {n} pixels, {kind}, {model}: {seconds:.0f} s, {n*n/1e6/seconds:.2f} Mpx/s, at most {gb:.2f} GB of memory')

if __name__=='__main__': main(*(int(a) if a.isdigit() else a for a in sys.argv[1:]))
