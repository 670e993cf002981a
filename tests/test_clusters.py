"""The scripts for SLURM in clusters/slurm, with a stand-in for sbatch that runs each job at once"""
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest

SLURM = Path(__file__).resolve().parents[1]/'clusters'/'slurm'
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
