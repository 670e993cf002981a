"""Train and run the packages that nbs/90_benchmarks compares with, in an environment of their own: `pip install csbdeep tensorflow-cpu careamics`

python tests/peers/peers.py train care PAIRS.npz MODEL_FOLDER MINUTES
python tests/peers/peers.py predict care MODEL_FOLDER INPUT_FOLDER OUTPUT_FOLDER

`predict learn - INPUT_FOLDER OUTPUT_FOLDER` runs fastai's own `learn.predict`, in the environment of this project.
"""
import json, sys, time
from pathlib import Path
import numpy as np, tifffile

LOW,HIGH = 1,99.8 # Percentiles of the input that are 0 and 1 for every method, ours too
VALID = 256       # Pairs that each package validates with
SIDE = 4          # CAREamics' U-Net halves an image twice, so that its sides must be multiples of this, px

def load_pairs(path):
    "(training, validation), each (blurred, sharp) of shape (n,128,128), float32"
    with np.load(path) as f: x,y = (f[k].astype(np.float32) for k in ('blurred','sharp'))
    return (x[:-VALID],y[:-VALID]),(x[-VALID:],y[-VALID:])

class Care:
    "CSBDeep's CARE: the configuration of its class `Config`, and the weights with the best validation loss, as its examples do"
    def train(self, pairs, folder, minutes):
        from csbdeep.models import CARE, Config
        from tensorflow.keras.callbacks import Callback
        class Stop(Callback):
            def on_train_begin(self, logs=None): self.end,self.steps = time.time()+60*minutes,0
            def on_train_batch_end(self, batch, logs=None):
                self.steps += 1
                if time.time()>self.end: self.model.stop_training = True
        (x,y),(vx,vy) = pairs
        model = CARE(Config('YXC', 1, 1, train_tensorboard=False), folder.name, basedir=str(folder.parent))
        model.prepare_for_training()
        stop = Stop()
        model.callbacks.append(stop)
        history = model.train(x[...,None], y[...,None], validation_data=(vx[...,None], vy[...,None])).history
        return dict(epochs=len(history['loss']), steps=stop.steps, parameters=int(model.keras_model.count_params()))

    def load(self, folder):
        from csbdeep.data import PercentileNormalizer
        from csbdeep.models import CARE
        model = CARE(None, folder.name, basedir=str(folder.parent))
        normalizer = PercentileNormalizer(LOW, HIGH, do_after=True)
        return lambda x: model.predict(x, 'YX', normalizer=normalizer)

class Careamics:
    "CAREamics: `create_care_config` with batches and patches as in its examples"
    def train(self, pairs, folder, minutes):
        from careamics import CAREamist
        from careamics.config.factories import create_advanced_care_config
        from pytorch_lightning import Callback
        class Stop(Callback):
            def on_train_start(self, trainer, module): self.end = time.time()+60*minutes
            def on_train_batch_end(self, trainer, *args):
                if time.time()>self.end: trainer.should_stop = True
        (x,y),(vx,vy) = pairs
        config = create_advanced_care_config(experiment_name='care', data_type='array', axes='SYX', patch_size=(128,128), batch_size=16, num_epochs=1000, num_workers=0,
                                             trainer_params=dict(accelerator='cpu', min_epochs=0))
        peer = CAREamist(config, work_dir=folder, callbacks=[Stop()], enable_progress_bar=False)
        peer.train(train_data=x, train_data_target=y, val_data=vx, val_data_target=vy)
        best = next(c.best_model_path for c in peer.trainer.callbacks if getattr(c, 'best_model_path', ''))
        (folder/'best.txt').write_text(str(Path(best).resolve()))
        return dict(epochs=peer.trainer.current_epoch, steps=peer.trainer.global_step, parameters=sum(p.numel() for p in peer.model.parameters()))

    def load(self, folder):
        from careamics import CAREamist
        peer = CAREamist(checkpoint_path=Path((folder/'best.txt').read_text()), work_dir=folder, enable_progress_bar=False)
        def predict(x):
            lo,hi = np.percentile(x, [LOW,HIGH])
            h,w = x.shape
            p = np.pad((x-lo)/(hi-lo), ((0,-h%SIDE),(0,-w%SIDE)), mode='reflect').astype(np.float32)
            y,_ = peer.predict(p[None], batch_size=1, num_workers=0)
            return np.squeeze(y[0])[:h,:w]*(hi-lo)+lo
        return predict

class Learn:
    "fastai's `learn.predict`, one image after the other, with the blog's ResNet34 U-Net; untrained, which makes no difference to its speed"
    def load(self, folder):
        import torch
        from fastai.vision.all import DataBlock, L1LossFlat, TensorImage, TransformBlock, resnet34, unet_learner
        def scaled(x):
            lo,hi = np.percentile(x, [LOW,HIGH])
            return TensorImage(torch.from_numpy((x-lo)/(hi-lo)).float()[None])
        block = TransformBlock(type_tfms=scaled)
        dls = DataBlock((block, block)).dataloaders([np.random.default_rng(i).random((128,128)) for i in range(4)], bs=2, num_workers=0, device='cpu')
        learn = unet_learner(dls, resnet34, n_in=1, n_out=1, pretrained=False, normalize=False, loss_func=L1LossFlat())
        return lambda x: learn.predict(x)[2][0].numpy()*(np.ptp(x))+x.min()

PEERS = dict(care=Care, careamics=Careamics, learn=Learn)

def train(peer, pairs, folder, minutes):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    about = PEERS[peer]().train(load_pairs(pairs), folder, float(minutes))
    (folder/'training.json').write_text(json.dumps(dict(about, minutes=round((time.time()-start)/60, 1))))

def predict(peer, folder, source, dest):
    "Refocus every TIFF of a folder; the seconds that each took, read and written, go into `seconds.json`"
    refocus,seconds = PEERS[peer]().load(Path(folder)),{}
    Path(dest).mkdir(parents=True, exist_ok=True)
    files = sorted(Path(source).glob('*.tif'))
    for f in files[:1]+files:
        start = time.perf_counter()
        y = refocus(tifffile.imread(f).astype(np.float32))
        tifffile.imwrite(Path(dest)/f.name, np.clip(np.rint(y), 0, 65535).astype(np.uint16))
        seconds[f.name] = time.perf_counter()-start
    (Path(dest)/'seconds.json').write_text(json.dumps(seconds))

if __name__=='__main__': dict(train=train, predict=predict)[sys.argv[1]](*sys.argv[2:])
