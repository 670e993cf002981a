"""The time and memory of `refocus plate` on simulated plates of several sizes, and on one that is killed twice on its way

python tests/plate.py growth nuclei-fast 16 64 256 768
python tests/plate.py killed nuclei-fast 768
"""
import csv, os, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path
import numpy as np, tifffile

ROOT = Path(__file__).resolve().parents[1]
SHAPE = 520, 696
PIXELS = 2*SHAPE[0]*SHAPE[1] # Of a field: two channels

def tiles():
    "Simulated nuclei, 12 um out of focus, from the sample plate"
    files = sorted((ROOT/'data'/'sample'/'BBBC006_v1_images_z_10').glob('*_w1*'))[:9]
    return np.block([[tifffile.imread(f) for f in files[i:i+3]] for i in (0,3,6)])

def make_plate(folder, fields):
    "Two sites in each well of a plate with 384 wells, as MetaXpress names them; every field is another part of the picture"
    folder.mkdir()
    large = tiles()
    rng = np.random.default_rng(0)
    places = [(row, column, site) for row in 'ABCDEFGHIJKLMNOP' for column in range(1, 25) for site in (1,2)]
    for row,column,site in places[:fields]:
        for channel in (1,2):
            y,x = rng.integers(0, np.array(large.shape)-SHAPE)
            field = np.rot90(large, 2*(channel-1))[y:y+SHAPE[0], x:x+SHAPE[1]]
            tifffile.imwrite(folder/f'screen_{row}{column:02d}_s{site}_w{channel}.tif', field, compression='zlib', photometric='minisblack',
                             metadata=None, resolution=(1e4/0.645,)*2, resolutionunit='CENTIMETER')

def memory_of(pid):
    "Memory of a process and of those that it started, bytes; pages that several share count once for each"
    total,todo = 0,[pid]
    while todo:
        p = todo.pop()
        try:
            status = Path(f'/proc/{p}/status').read_text()
            todo += [int(c) for t in Path(f'/proc/{p}/task').iterdir() for c in (t/'children').read_text().split()]
        except OSError: continue
        total += sum(int(line.split()[1])*1024 for line in status.splitlines() if line.startswith('RssAnon'))
    return total

class Run:
    "A `refocus plate` in another process; notes its largest memory"
    def __init__(self, source, out, model, *options):
        command = [sys.executable, '-m', 'refocus_nbdev', 'plate', source, out, '--model', model, *options]
        self.start,self.most = time.perf_counter(),0
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while self.process.poll() is None:
            self.most = max(self.most, memory_of(self.process.pid))
            time.sleep(0.5)

    def ended(self):
        "Wait for the end; returns seconds"
        self.said,_ = self.process.communicate()
        return time.perf_counter()-self.start

    def kill(self): os.killpg(self.process.pid, signal.SIGKILL)

def files_in(out): return {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}

def fields_in(out): return [p.parent for p in out.glob('*/*/*/zarr.json') if '.partial' not in p.as_posix()]

def growth(model, *counts):
    "A row for each number of fields, alone and with two workers"
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for n in map(int, counts):
            make_plate(source := Path(d)/f'plate{n}', n)
            for workers,options in ((1, ()), (2, ('--scheduler', 'local:2'))):
                out = Path(d)/f'out{n}_{workers}.zarr'
                run = Run(source, out, model, *options)
                seconds = run.ended()
                assert len(fields_in(out))==n, run.said
                size = sum(p.stat().st_size for p in out.rglob('*') if p.is_file())
                rows.append(dict(fields=n, processes=workers, seconds=round(seconds,1), megapixels_per_second=round(n*PIXELS/1e6/seconds, 2),
                                 gigabytes=round(run.most/1e9, 2), files=len(files_in(out)), megabytes_written=round(size/1e6)))
                print(rows[-1], flush=True)
    return rows

def killed(model, count):
    "Kill a run twice, after a third and after two thirds of the fields; then let it end"
    n = int(count)
    with tempfile.TemporaryDirectory() as d:
        make_plate(source := Path(d)/'plate', n)
        out = Path(d)/'out.zarr'
        before,rows = {},[]
        for share in (1/3, 2/3, 1):
            run = Run(source, out, model)
            while share<1 and len(fields_in(out))<share*n and run.process.poll() is None: time.sleep(0.2)
            if share<1: run.kill()
            seconds = run.ended()
            now = files_in(out)
            changed = [p for p in before if now.get(p)!=before[p]]
            before = {p: t for p,t in now.items() if p.count('/')>=3 and '.partial' not in p}
            rows.append(dict(run=len(rows)+1, ended='killed' if share<1 else 'by itself', fields_complete=len(fields_in(out)),
                             files_changed_of_earlier_fields=len(changed), seconds=round(seconds,1), gigabytes=round(run.most/1e9, 2)))
            print(rows[-1], flush=True)
        left = [p for p in files_in(out) if '.partial' in p]
        print(f'{len(left)} temporary files left; {run.said.splitlines()[-1]}')
    return rows

if __name__=='__main__':
    rows = dict(growth=growth, killed=killed)[sys.argv[1]](*sys.argv[2:])
    writer = csv.DictWriter(sys.stdout, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
