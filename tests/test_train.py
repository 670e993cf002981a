import csv, shutil, time
import pytest, tifffile
from conftest import LATE_WELL, MOVED, SAMPLE, contents
from refocus_nbdev.refocus.engine import Refocuser
from refocus_nbdev.io.disk import file_hash
from refocus_nbdev.learn.modelfile import read_card
from refocus_nbdev.plates.names import plane_files
from refocus_nbdev.plates.pairs import bbbc006_pairs

def part_of_the_plate(root, planes, names):
    "A folder with some fields of the sample plate"
    for z in planes:
        folder = f'BBBC006_v1_images_z_{z:02d}'
        (root/folder).mkdir()
        for name in names:
            for f in SAMPLE.glob(f'{folder}/*_{name}*'): shutil.copy(f, root/folder)
    return root

@pytest.fixture(scope='module')
def plate(tmp_path_factory):
    "Two wells, two planes out of focus and the one in focus: one batch to train on"
    return part_of_the_plate(tmp_path_factory.mktemp('plate'), (5, 10, 16), ('a05','c12'))

@pytest.fixture(scope='module')
def trained(plate, tmp_path_factory, refocus):
    "A model after one epoch, and what the command said"
    out = tmp_path_factory.mktemp('model')/'small.safetensors'
    return out, refocus('train', plate, '--out', out, '--epochs', 1)

def epochs(log):
    with open(log) as f: return [int(row['epoch']) for row in csv.DictReader(f)]

def test_one_epoch_makes_a_model(trained):
    out,said = trained
    assert said.code==0 and 'doing nothing' in said.text
    assert contents(out.parent).keys()=={'small.safetensors'} and out.stat().st_size < 20_000_000

def test_its_card_says_what_it_saw(trained):
    card = read_card(trained[0])
    assert (card['name'], card['files'], card['groups'], len(card['held_out']))==('small', 12, 2, 1)
    assert {'psnr', 'psnr_input', 'ssim', 'ssim_input'} <= card['validation'].keys()

def test_others_may_read_it_like_any_file(trained, tmp_path):
    (tmp_path/'any').touch()
    assert trained[0].stat().st_mode==(tmp_path/'any').stat().st_mode

def test_the_model_refocuses(trained, blurred):
    y = Refocuser.load(trained[0]).refocus(blurred)
    assert (y.shape, y.dtype)==(blurred.shape, blurred.dtype)

def test_killed_and_resumed(refocus, start, plate, tmp_path):
    out,log = tmp_path/'m.safetensors', tmp_path/'log.csv'
    args = 'train', plate, '--out', out, '--epochs', 4, '--log', log, '--valid-wells'
    running = start(*args, 'a05')
    while running.poll() is None and not list(tmp_path.glob('m.safetensors.checkpoint')): time.sleep(0.05)
    running.kill()
    running.wait()
    before = epochs(log)
    assert before and not out.exists()
    said = refocus(*args, 'c12', '--resume')
    assert said.code==2 and 'another split' in said.text and not out.exists() and epochs(log)==before
    said = refocus(*args, 'a05', '--resume')
    assert said.code==0 and 'goes on from m.safetensors.checkpoint: stage 1 of 1, in epoch' in said.text
    after = epochs(log)[len(before):]
    assert after==list(range(after[0], 4)) and 0 < after[0] <= len(before)
    assert out.exists() and not list(tmp_path.glob('*.checkpoint'))
    said = refocus('info', log)
    assert said.code==0 and 'epochs, of refocus train --log' in said.text

def test_start_from_a_model(in_process, trained, plate, tmp_path):
    said = in_process('train', plate, '--out', tmp_path/'m.safetensors', '--epochs', 1, '--init', trained[0], '--resume')
    assert said.code==0 and 'there is no checkpoint' in said.text and read_card(tmp_path/'m.safetensors')['init']==file_hash(trained[0])

def test_images_too_small_to_train_on_are_noticed_before(in_process, tmp_path):
    (tmp_path/'in').mkdir()
    for i,f in enumerate(sorted((SAMPLE/'BBBC006_v1_images_z_16').glob('*_s1_*'))[:3]): tifffile.imwrite(tmp_path/'in'/f.name, tifffile.imread(f)[:None if i else 100])
    args = 'train', '--sharp-only', tmp_path/'in', '--out', tmp_path/'m.safetensors', '--dry-run', '--valid-wells'
    names = sorted(f.name for f in (tmp_path/'in').iterdir())
    wells = [n.split('_')[1] for n in names]
    for held_out,code,what in ((wells[0], 2, 'nothing is left to validate on'), (','.join(wells[1:]), 2, 'nothing is left to train on'), (wells[1], 0, 'left out')):
        said = in_process(*args, held_out)
        assert said.code==code and f'{names[0]}: too small' in said.text and what in said.text, said.text

def test_kinds_come_from_a_table(in_process, tmp_path):
    folder = SAMPLE/'BBBC006_v1_images_z_16'
    files = sorted(folder.iterdir())
    table = tmp_path/'kinds.csv'
    table.write_text('file,kind\n' + ''.join(f'{f.name},{"many" if i else "few"}\n' for i,f in enumerate(files)))
    out = tmp_path/'m.safetensors'
    args = 'train', '--sharp-only', folder, '--out', out, '--epochs', 1, '--valid-wells', 'p14', '--kinds', table
    assert in_process(*args).code==0 and read_card(out)['kinds']==dict(few=1, many=len(files)-1)
    table.write_text('file,kind\na.tif,few\n')
    said = in_process(*args[:4], tmp_path/'n.safetensors', *args[5:])
    assert said.code==2 and 'has no row for' in said.text and files[0].name in said.text
    said = in_process('train', SAMPLE, '--kinds', table, '--out', tmp_path/'n.safetensors')
    assert said.code==2 and 'give --sharp-only' in said.text

def test_sharp_images_alone_are_enough(in_process, tmp_path):
    out = tmp_path/'m.safetensors'
    said = in_process('train', '--sharp-only', SAMPLE/'BBBC006_v1_images_z_16', '--out', out, '--epochs', 1, '--modality', 'nuclei', '--pixel-um', 0.5)
    card = read_card(out)
    assert said.code==0 and (card['modality'], card['pixel_um'])==('nuclei', 0.5)
    assert card['blur']['px_per_um']==pytest.approx(0.5*0.645/0.5) and card['blur']['max_um']==pytest.approx(40*0.5/0.645)

def test_an_aperture_that_cannot_be(in_process, tmp_path):
    code,text = in_process('train', '--sharp-only', SAMPLE/'BBBC006_v1_images_z_16', '--out', tmp_path/'m.safetensors', '--na', 1.2)
    assert code==2 and 'refractive index' in text and not contents(tmp_path)

def test_wells_of_sharp_images_can_be_named_or_taken_from_a_model(in_process, tmp_path):
    first,other = tmp_path/'first.safetensors',tmp_path/'other.safetensors'
    train = 'train','--sharp-only',SAMPLE/'BBBC006_v1_images_z_16','--epochs',1
    said = in_process(*train, '--out', first, '--valid-wells', 'a05', '--test-wells', 'c12')
    assert said.code==0 and 'held out to validate on: 1 (a05)' in said.text
    assert {n.split('_')[-3] for n in read_card(first)['held_out']}=={'a05','c12'}
    said = in_process(*train, '--out', other, '--unseen-by', first, '--dry-run')
    assert said.code==0 and 'held out to validate on: 2 (a05, c12)' in said.text
    assert 'because first was not trained on them' in said.text
    said = in_process(*train, '--out', other, '--unseen-by', 'nuclei')
    assert said.code==2 and 'held out none' in said.text and not other.exists()

def test_images_in_focus_without_the_option_for_them(in_process, tmp_path):
    said = in_process('train', SAMPLE/'BBBC006_v1_images_z_16', '--out', tmp_path/'m.safetensors')
    assert said.code==2 and 'add --sharp-only' in said.text
    said = in_process('train', tmp_path/'none', '--out', tmp_path/'m.safetensors')
    assert said.code==2 and 'there is no such folder' in said.text and '--sharp-only' not in said.text

def test_groups_without_wells_are_called_after_their_files(in_process, tmp_path):
    for i,f in enumerate(sorted((SAMPLE/'BBBC006_v1_images_z_16').iterdir())[::4]): shutil.copy(f, tmp_path/f'field{i}.tif')
    said = in_process('train', '--sharp-only', tmp_path, '--out', tmp_path/'m.safetensors', '--valid-wells', 'field2', '--dry-run')
    assert said.code==0 and '(field2)' in said.text and not (tmp_path/'m.safetensors').exists()

def test_fewer_images_than_a_batch_are_enough(in_process, tmp_path):
    root = part_of_the_plate(tmp_path, (10, 16), ('a05_s1','c12_s1'))
    said = in_process('train', root, '--out', tmp_path/'m.safetensors', '--epochs', 1)
    assert said.code==0 and 'nan' not in said.text

WRONG = dict(
    recipe=['--stages','none'], from_nothing=['--stages','few'], epochs=['--epochs',-1], planes=['--planes','1;5'], folder=['--out','no/such/folder/m.safetensors'],
    two_plates=['second'], share=['--valid-pct',2], unknown=['--nonsense'])

@pytest.mark.parametrize('args', WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments(in_process, plate, tmp_path, args):
    assert in_process('train', plate, '--out', tmp_path/'m.safetensors', *args)[0]==2
    assert not contents(tmp_path)

def test_a_model_file_is_never_replaced(in_process, plate, tmp_path):
    (tmp_path/'m.safetensors').write_text('hours of work')
    code,text = in_process('train', plate, '--out', tmp_path/'m.safetensors', '--epochs', 1)
    assert code==2 and 'exists' in text and (tmp_path/'m.safetensors').read_text()=='hours of work'

@pytest.fixture
def unusable(plate, tmp_path):
    "Things that cannot be trained on, or from"
    (tmp_path/'empty').mkdir()
    shutil.copytree(plate, tmp_path/'plate')
    shutil.copytree(plate, tmp_path/'blurred only', ignore=lambda d,names: [n for n in names if n.endswith('_16')])
    shutil.copytree(plate, tmp_path/'one well', ignore=lambda d,names: [n for n in names if '_c12_' in n])
    (tmp_path/'model').write_text('not a model')
    return tmp_path

@pytest.mark.parametrize('data,options,about', [
    ('empty', [], 'no images'), ('blurred only', [], 'z_16'), ('one well', [], 'one group'), ('gone', [], 'gone'),
    ('gone', ['--sharp-only'], 'gone'), ('plate/BBBC006_v1_images_z_16', ['--sharp-only','--pixel-um',0], 'above 0'), ('plate', ['--init','model'], 'model')])
def test_what_cannot_be_used_gets_a_sentence(in_process, unusable, data, options, about):
    options = [unusable/o if o=='model' else o for o in options]
    code,text = in_process('train', unusable/data, '--out', unusable/'m.safetensors', '--epochs', 1, *options)
    assert code==2 and about in text and not (unusable/'m.safetensors').exists()

NOWHERE = dict(out=['--out','file/m.safetensors'], log=['--log','file/log.csv'], checkpoint=['--checkpoint','file/c'])

@pytest.mark.parametrize('args', NOWHERE.values(), ids=NOWHERE.keys())
def test_what_cannot_be_written_is_found_out_before_anything_is_computed(in_process, plate, tmp_path, monkeypatch, args):
    (tmp_path/'file').write_text('no folder')
    monkeypatch.chdir(tmp_path)
    code,text = in_process('train', plate, *args)
    assert code==2 and 'file' in text and 'epoch' not in text and contents(tmp_path).keys()=={'file'}

def test_a_disk_that_may_only_be_read(in_process, plate, tmp_path, monkeypatch):
    from refocus_nbdev.io import disk
    def refuse(**kwargs): raise OSError(30, 'Read-only file system')
    monkeypatch.setattr(disk, 'TemporaryFile', refuse)
    code,text = in_process('train', plate, '--out', tmp_path/'m.safetensors')
    assert code==2 and 'm.safetensors: cannot be written (OSError: Read-only file system)' in text and 'epoch' not in text

def test_images_out_of_focus_are_warned_of(in_process, tmp_path):
    said = [in_process('train', '--sharp-only', SAMPLE/f'BBBC006_v1_images_z_{z}', '--out', tmp_path/'m.safetensors', '--dry-run') for z in (32, 16)]
    assert [s.code for s in said]==[0,0] and [s.text.count('WARNING: a look at 8 images finds 8 out of focus') for s in said]==[1,0]

def test_interrupted_before_anything_is_kept(in_process, plate, tmp_path, monkeypatch):
    from refocus_nbdev.learn import training
    def interrupted(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'train', interrupted)
    said = in_process('train', plate, '--out', tmp_path/'m.safetensors')
    assert said.code==130 and 'nothing is kept' in said.text

def test_a_checkpoint_that_is_none(in_process, plate, tmp_path):
    (tmp_path/'m.safetensors.checkpoint').write_text('not a checkpoint')
    code,text = in_process('train', plate, '--out', tmp_path/'m.safetensors', '--epochs', 1, '--resume')
    assert code==2 and 'checkpoint' in text

def test_a_checkpoint_is_not_trained_over(in_process, plate, tmp_path):
    (tmp_path/'m.safetensors.checkpoint').write_text('hours of work')
    code,text = in_process('train', plate, '--out', tmp_path/'m.safetensors', '--epochs', 1)
    assert code==2 and '--resume' in text and (tmp_path/'m.safetensors.checkpoint').read_text()=='hours of work'

@pytest.fixture(scope='module')
def trained_with_options(big_plate, tmp_path_factory, in_process):
    "A model from a plate with many planes, with the choices of pairs and wells that the command has"
    out = tmp_path_factory.mktemp('options')/'m.safetensors'
    said = in_process('train', big_plate, '--out', out, '--epochs', 1, '--planes', '5,10', '--target', 'sharpest', '--registered', '--valid-wells', 'a05', '--test-wells', 'm22,p14')
    return out,said

def test_wells_can_be_named(trained_with_options):
    out,said = trained_with_options
    card = read_card(out)
    assert said.code==0 and card['held_out']==['a05','m22','p14'] and card['groups']==4

def test_pairs_are_the_registered_ones_with_the_sharpest_target(trained_with_options, big_plate):
    from refocus_nbdev.learn.training import hash_files
    out,said = trained_with_options
    pairs = [p for p in bbbc006_pairs(big_plate, (5,10), 'sharpest') if p.field.well not in ('m22','p14')]
    good = [p for p in pairs if (p.field.well, p.field.site, p.field.z)!=MOVED]
    late = plane_files(big_plate, 19)[LATE_WELL,1]
    assert len(pairs)==len(good)+1 and late in {p.sharp for p in good}
    assert '1 of 8 pairs is shifted' in said.text
    assert read_card(out)['files_sha256']==hash_files({f for p in good for f in p[:2]})

def test_the_blogs_steps_from_random_weights(in_process, tmp_path):
    root,out = part_of_the_plate(tmp_path, (10, 16), ('a05_s1','c12_s1')), tmp_path/'m.safetensors'
    said = in_process('train', root, '--out', out, '--stages', 'blog_short', '--epochs', 1, '--weights', 'random')
    card = read_card(out)
    assert said.code==0 and (card['network'], card['loss'])==('fastai_unet', 'feature')

def test_weights_that_are_not_there(in_process, plate, tmp_path):
    code,text = in_process('train', plate, '--out', tmp_path/'m.safetensors', '--stages', 'blog_short', '--weights', tmp_path/'none')
    assert code==2 and '--weights' in text

def test_dry_run_writes_nothing(in_process, plate, tmp_path):
    assert in_process('train', plate, '--out', tmp_path/'m.safetensors', '--dry-run')[0]==0
    assert not contents(tmp_path)
