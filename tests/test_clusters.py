"""The scripts for SLURM in clusters/slurm, with a stand-in for sbatch that runs each job at once; and the task of Fractal"""
import json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest

CLUSTERS = Path(__file__).resolve().parents[1]/'clusters'
SLURM = CLUSTERS/'slurm'
SCRIPTS = sorted(SLURM.glob('*.sh'))

SBATCH = r'''#!/usr/bin/env bash
set -euo pipefail
wrap= tasks=
while [[ ${1:-} == --* ]]; do
    case $1 in --wrap=*) wrap=${1#--wrap=};; --array=1-*) tasks=${1#--array=1-};; esac
    echo "$1" >> options.txt
    shift
done
if [[ -n $wrap ]]; then bash -c "$wrap" >> log.txt; fi
for (( i = 1; i <= ${tasks:-0}; i++ )); do
    SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=$tasks SLURM_CPUS_PER_TASK=3 bash "$@" >> log.txt
done
echo 17
'''
REFOCUS = '''#!{python}
import json, os, sys
print(json.dumps([os.environ['OMP_NUM_THREADS'], *sys.argv[1:]]))
'''

@pytest.fixture
def cluster(tmp_path):
    "Runs submit.sh or another script in an empty folder, where sbatch and refocus are stand-ins"
    if sys.platform=='win32' or not shutil.which('bash'): pytest.skip('needs bash')
    programs = tmp_path/'bin'
    programs.mkdir()
    for name,text in dict(sbatch=SBATCH, refocus=REFOCUS.format(python=sys.executable)).items():
        (programs/name).write_text(text)
        (programs/name).chmod(0o755)
    env = {k:v for k,v in os.environ.items() if not k.startswith(('SLURM','SBATCH'))}
    def run(script, *args, **more):
        return subprocess.run(['bash', SLURM/script, *args], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              env={**env, 'PATH':f'{programs}{os.pathsep}{env["PATH"]}', **more})
    return run

def test_three_jobs_do_a_plate(cluster, tmp_path):
    done = cluster('submit.sh', 'a plate/*.tif', "it's.zarr", '--channel', 'DNA, ER', SHARDS='2')
    assert done.returncode==0, done.stderr
    said = [json.loads(line) for line in (tmp_path/'log.txt').read_text().splitlines()]
    plate = ['plate', 'a plate/*.tif', "it's.zarr"]
    options = ['--channel', 'DNA, ER']
    assert said==[['1', *plate, *options, '--init'], ['3', *plate, '--shard', '1/2', *options],
                  ['3', *plate, '--shard', '2/2', *options], ['1', *plate, *options, '--tables']]
    assert {'--dependency=afterok:17', '--dependency=afterok:17,afterany:17'} <= set((tmp_path/'options.txt').read_text().splitlines())

def array(task, first, last):
    "What SLURM tells a task of an array"
    return dict(SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_MIN=str(first), SLURM_ARRAY_TASK_MAX=str(last))

def test_one_shard_is_repeated(cluster):
    done = cluster('refocus_plate.sh', '8', 'plate', 'out', '--strict', **array(3, 3, 3))
    assert json.loads(done.stdout)==['1', 'plate', 'plate', 'out', '--shard', '3/8', '--strict'], done.stderr

@pytest.mark.parametrize('script, args, env, message', [
    ('submit.sh', ['plate'], {}, 'usage: SHARDS=8'), ('submit.sh', ['plate', 'out'], dict(SHARDS='0'), 'SHARDS=0: give'),
    ('refocus_plate.sh', ['8', 'plate'], {}, 'usage: sbatch'), ('refocus_plate.sh', ['plate', 'out', '--strict'], {}, 'usage: sbatch'),
    ('refocus_plate.sh', ['8', 'plate', 'out'], {}, 'send this script with sbatch'),
    ('refocus_plate.sh', ['8', 'plate', 'out'], array(3, 0, 7), 'tasks from 1 to 8'),
    ('refocus_plate.sh', ['8', 'plate', 'out'], array(3, 1, 9), 'tasks from 1 to 8')])
def test_wrong_calls_run_nothing(cluster, tmp_path, script, args, env, message):
    done = cluster(script, *args, **env)
    assert done.returncode and message in done.stderr
    assert not (tmp_path/'log.txt').exists() and not done.stdout

def test_shellcheck_finds_nothing():
    if not shutil.which('shellcheck'): pytest.skip('needs shellcheck')
    done = subprocess.run(['shellcheck', *SCRIPTS], capture_output=True, text=True)
    assert done.returncode==0, done.stdout

def test_fractal_does_some_images_of_a_plate(tmp_path, monkeypatch):
    "The new plate lists the fields that come, and no other; a second call adds more"
    for package in ('pydantic', 'zarr'): pytest.importorskip(package)
    monkeypatch.syspath_prepend(CLUSTERS/'fractal')
    from refocus_fractal.init_plate import init_plate
    from refocus_fractal.refocus_field import refocus_field
    from refocus_nbdev.io.hcs import init_plate as new_plate, plate_fields
    import zarr
    fields = 'A/1/0', 'A/1/1', 'B/2/0', 'B/2/1'
    plate = new_plate(tmp_path/'screen.ome.zarr', 'screen', dict.fromkeys(fields), 'an example')
    for field in fields:
        image = zarr.open_group(str(plate/field), mode='w')
        image.create_array('0', data=np.random.default_rng(0).poisson(200, (48,48)).astype(np.uint16))
        image.attrs['ome'] = dict(version='0.5', multiscales=[dict(axes=[dict(name=a) for a in 'yx'], datasets=[dict(path='0')])])
    new = tmp_path/'results'/'screen_refocused.ome.zarr'
    new.parent.mkdir()
    for wanted,listed in (['A/1/1'], ['A/1/1']), (['A/1/0', 'B/2/1'], ['A/1/0', 'A/1/1', 'B/2/1']):
        items = init_plate(zarr_urls=[str(plate/f) for f in wanted], zarr_dir=str(new.parent), model='nuclei-fast')
        items = items['parallelization_list']
        assert [item['zarr_url'] for item in items]==[str(new/f) for f in wanted]
        for item in items: refocus_field(**json.loads(json.dumps(item)))
        assert [*plate_fields(new)]==listed==[f for f in fields if (new/f).exists()]
