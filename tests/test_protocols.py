"The three protocols on a temporary plate with many planes: what is trained on, what is scored, in which units"
import numpy as np, pytest
import refocus_nbdev.judge.protocols as protocols
from refocus_nbdev.judge.benchmark import RIVALS
from refocus_nbdev.optics.intensity import MINMAX
from refocus_nbdev.learn.networks import ModelError, build_network
from refocus_nbdev.learn.modelfile import read_card, write_model
from refocus_nbdev.plates.names import planes_in
from refocus_nbdev.judge.protocols import PROTOCOLS, run_protocol
from refocus_nbdev.learn.training import Recipe, Stage

TINY = Recipe((Stage(64, 16, 1, 1e-3, crops=1),), args=dict(widths=(8,16), sigmas=(6,12)))

@pytest.fixture(scope='module')
def scored(big_plate, tmp_path_factory):
    "Scores and card of each protocol"
    from fastai.vision.all import ProgressCallback, defaults
    defaults.callbacks = [c for c in defaults.callbacks if c is not ProgressCallback]
    out = tmp_path_factory.mktemp('protocols')
    return {n: (run_protocol(n, big_plate, out/f'{n}.safetensors', recipe=TINY), read_card(out/f'{n}.safetensors')) for n in PROTOCOLS}

@pytest.mark.parametrize('name,planes', [('P1',{2,6,10}), ('P2',{1,5,10,32}), ('P3',None)])
def test_planes_and_methods(scored, big_plate, name, planes):
    scores,_ = scored[name]
    assert set(scores.z)==(planes or set(planes_in(big_plate))-{16})
    assert set(scores.method)=={*RIVALS, name}
    assert np.isfinite(scores[['psnr','ssim','f1']]).all(axis=None)

def test_only_wells_that_were_never_seen_are_scored(scored):
    for scores,card in scored.values(): assert set(scores.well) <= set(card['held_out'])
    assert len({frozenset(s.well) for s,_ in scored.values()})==1

def test_scales(scored):
    cards = {n: c['scale'] for n,(_,c) in scored.items()}
    assert cards['P1']==MINMAX and cards['P2']['high']==99.8 and cards['P3']['range']>0

def test_a_model_that_is_there_is_only_scored(scored, big_plate, tmp_path, monkeypatch):
    def never(*args, **kwargs): raise AssertionError('trained again')
    monkeypatch.setattr(protocols, 'train_from_pairs', never)
    card = scored['P2'][1]
    write_model(tmp_path/'P2.safetensors', build_network(card['network'], **card['args']), card)
    assert set(run_protocol('P2', big_plate, tmp_path/'P2.safetensors', recipe=TINY).z)=={1,5,10,32}
    with pytest.raises(ModelError, match='otherwise'): run_protocol('P2', big_plate, tmp_path/'P2.safetensors')
    with pytest.raises(ModelError, match='files_sha256'): run_protocol('P2', big_plate, tmp_path/'P2.safetensors', recipe=TINY, test_wells=('a05',))
