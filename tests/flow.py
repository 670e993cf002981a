"""The speed of `run_jobs` with several numbers of files at a time and of PyTorch's threads for each, in turn

python tests/flow.py speed nuclei 120 3 2x2locked 2x1 3x1 1x2
python tests/flow.py memory nuclei 2560 4 2x2locked 2x1 3x1 1x2

`2x1` are two files at a time with one thread each. With `locked`, the network computes for one file at a time. The second line finds
the largest memory, for files of 2560 x 2560 pixels.
"""
import csv, resource, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, tifffile
from plate import SHAPE, tiles
from refocus_nbdev.refocus.engine import Batcher, Refocuser
from refocus_nbdev.refocus.jobs import plan_run, run_jobs

def make_fields(folder, count):
    "Simulated fields, each another part of one picture"
    folder.mkdir()
    large = tiles()
    rng = np.random.default_rng(0)
    for i in range(count):
        y,x = rng.integers(0, np.array(large.shape)-SHAPE)
        tifffile.imwrite(folder/f'{i:03d}.tif', large[y:y+SHAPE[0], x:x+SHAPE[1]], compression='zlib', photometric='minisblack',
                         metadata=None, resolution=(1e4/0.645,)*2, resolutionunit='CENTIMETER')

def refocuser_of(model, way):
    "A `Refocuser` on the CPU that does so many files at a time"
    r = Refocuser.load(model, 'cpu')
    jobs,threads = way.removesuffix('locked').split('x')
    r.at_once = int(jobs),int(threads)
    if way.endswith('locked'): r.queue = Batcher(r.computed, lambda: 0)
    return r

def timed(refocuser, source, out):
    "Seconds of a run, and its seconds of processor time"
    shutil.rmtree(out, ignore_errors=True)
    jobs = plan_run([source], out)
    start,used = time.perf_counter(),time.process_time()
    run_jobs(jobs, refocuser)
    assert all(j.status=='done' for j in jobs), jobs[0].note
    return time.perf_counter()-start,time.process_time()-used

def difference(one, other):
    "The largest difference of the results in two folders, counts"
    return max(int(np.abs(tifffile.imread(f).astype(int)-tifffile.imread(other/f.name)).max()) for f in one.iterdir())

def row(way, times, first, megapixels, counts):
    "Medians and ranges of a way; its speed as a share of the first way's, round by round"
    seconds,used = np.array(times).T
    ratio = np.array(first)[:,0]/seconds
    return dict(way=way, megapixels_per_second=round(megapixels/np.median(seconds), 2), slowest=round(megapixels/seconds.max(), 2),
                fastest=round(megapixels/seconds.min(), 2), processor_seconds=round(float(np.median(used)), 1),
                speed_to_first=round(float(np.median(ratio)), 2), least=round(ratio.min(), 2), most=round(ratio.max(), 2), counts_to_first=counts)

def speed(model, count, rounds, *ways):
    "A row for each way"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        make_fields(d/'in', int(count))
        refocusers = {way: refocuser_of(model, way) for way in ways}
        for way,r in refocusers.items(): timed(r, d/'in'/'000.tif', d/way)
        times = {way: [] for way in ways}
        for _ in range(int(rounds)):
            for way,r in refocusers.items(): times[way].append(timed(r, d/'in', d/way))
        megapixels = int(count)*SHAPE[0]*SHAPE[1]/1e6
        return [row(way, times[way], times[ways[0]], megapixels, difference(d/ways[0], d/way)) for way in ways]

def peak(model, side, count, way):
    "Refocus large files; print the largest memory of this process, GB"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        (d/'in').mkdir()
        large = np.tile(tiles(), (1+int(side)//768,)*2)[:int(side), :int(side)]
        for i in range(int(count)): tifffile.imwrite(d/'in'/f'{i}.tif', np.roll(large, 99*i), photometric='minisblack')
        timed(refocuser_of(model, way), d/'in', d/'out')
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6)

def memory(model, side, count, *ways):
    "A row for each way, each in a process of its own"
    def gigabytes(way): return subprocess.run([sys.executable, __file__, 'peak', model, side, count, way], check=True, capture_output=True, text=True).stdout
    return [dict(way=way, gigabytes=round(float(gigabytes(way)), 2)) for way in ways]

def main(what, *args):
    if what=='peak': return peak(*args)
    rows = dict(speed=speed, memory=memory)[what](*args)
    writer = csv.DictWriter(sys.stdout, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)

if __name__=='__main__': main(*sys.argv[1:])
