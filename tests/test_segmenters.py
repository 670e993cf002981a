"""Segmenters of other packages, where they are installed, with untrained networks: nothing is fetched."""
import numpy as np, pytest
from conftest import SAMPLE
from refocus_nbdev.io.images import read_image
from refocus_nbdev.judge.segmenters import segmenter_of

TARGET = sorted((SAMPLE/'BBBC006_v1_images_z_16').iterdir())[0]

def agrees(find):
    "Labels of the size of an image; none on a blank one"
    x = read_image(TARGET).pixels
    found = find(x, 20.)
    assert found.shape==x.shape and found.dtype.kind=='i' and found.min()==0
    assert not find(np.full_like(x, 100), 20.).any()

@pytest.fixture(scope='module')
def stardist_folder(tmp_path_factory):
    models = pytest.importorskip('stardist.models')
    folder = tmp_path_factory.mktemp('models')
    net = models.StarDist2D(models.Config2D(n_rays=8, unet_n_depth=1, unet_n_filter_base=4), name='small', basedir=str(folder))
    net.keras_model.save_weights(str(folder/'small'/'weights_best.h5'))
    return folder/'small'

def test_stardist(stardist_folder): agrees(segmenter_of(f'stardist:{stardist_folder}'))

def test_a_report_by_stardist(stardist_folder, in_process, tmp_path):
    said = in_process('evaluate', TARGET, TARGET, '--segmenter', f'stardist:{stardist_folder}', '--out', tmp_path/'report')
    assert said.code==0 and f'stardist:{stardist_folder}' in (tmp_path/'report'/'report.html').read_text()

def test_cellpose(tmp_path):
    pytest.importorskip('cellpose.models')
    torch,vit = pytest.importorskip('torch'),pytest.importorskip('cellpose.vit')
    torch.save(vit.CPSAM().state_dict(), tmp_path/'untrained')
    agrees(segmenter_of(f'cellpose:{tmp_path/"untrained"}'))

@pytest.mark.parametrize('name,said', [('otsu','there are classical, stardist, cellpose'), ('cellpose:none','segmenter cellpose:none')])
def test_what_cannot_be_had_is_said_before_anything_is_compared(name, said, in_process, tmp_path):
    done = in_process('evaluate', TARGET, TARGET, '--segmenter', name, '--out', tmp_path/'report')
    assert done.code==2 and said in done.text and not (tmp_path/'report').exists()
