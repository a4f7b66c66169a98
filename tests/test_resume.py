"A run that was killed goes on in a new process, from plain files, to the curve of one that was left alone"
import json, os, signal, subprocess, sys, textwrap
import numpy as np, pandas as pd, pytest
from fgvc_fast.core import FineGrainedError

pytestmark = pytest.mark.usefixtures('one_thread')

script = textwrap.dedent('''
    import os, signal, sys, json, torch
    torch.set_num_threads(1)
    from fgvc_fast.all import *
    kind,folder,out,kill = sys.argv[1:5]
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=48, seed=0)
    set_seed(0)
    learn = fine_grained_learner(data.dls(size=32, bs=8, seed=3 if kind=='grows' else None, num_workers=0), 'toy_resnet', metrics=accuracy, drop=.2, cbs=Accumulate(2) if kind=='callbacks' else None)
    plans = dict(grows=[Phase('head', 2, lr=1e-2, views=2), Phase('all', 2, lr=2e-3, size=48, keep_stats=True)],
        callbacks=[Phase('head', 1), Phase('all', 3, lr=slice(1e-4,5e-3), reinit=1, patience=2)])
    cbs = [EMA(.9), L2SP(.1), MixUp()] if kind=='callbacks' else []
    class Kill(Callback):
        order,run_valid = 300,False
        def after_batch(self):
            if len(self.recorder.losses)==int(kill): os.kill(os.getpid(), signal.SIGKILL)
    with learn.no_bar(), learn.no_logging():
        if kill=='resume':
            torch.rand(5) # a process of its own has other random numbers
            learn.fit_phases(resume=folder, cbs=cbs)
        else: learn.fit_phases(plans[kind], cbs=cbs+[Kill()]*(kill!='0'), folder=folder)
    json.dump(dict(losses=[float(o) for o in learn.recorder.losses], log=learn.phase_log.drop(columns='seconds').values.tolist(), w=[p.double().sum().item() for p in learn.model.parameters()]), open(out, 'w'))
''')

def start(tmp_path, kind, folder, kill):
    (tmp_path/'train.py').write_text(script)
    out = tmp_path/f'{kill}.json'
    env = os.environ | dict(OMP_NUM_THREADS='1')
    res = subprocess.run([sys.executable, '-W', 'ignore', str(tmp_path/'train.py'), kind, str(folder), str(out), str(kill)], capture_output=True, text=True, env=env, timeout=300)
    return res,json.loads(out.read_text()) if out.exists() else None

@pytest.mark.parametrize('kind,kill', [('grows', 11), ('callbacks', 9)])
def test_killed_and_resumed(tmp_path, kind, kill):
    res,whole = start(tmp_path, kind, tmp_path/'whole', 0)
    assert res.returncode==0, res.stderr[-3000:]
    res,_ = start(tmp_path, kind, tmp_path/'run', kill)
    assert res.returncode==-signal.SIGKILL, res.stderr[-3000:]
    kept = sorted(o.name for o in (tmp_path/'run').iterdir() if o.suffix!='.safetensors')
    assert kept==['phase_log.csv','snapshot.json'] # no pickle
    res,again = start(tmp_path, kind, tmp_path/'run', 'resume')
    assert res.returncode==0, res.stderr[-3000:]
    np.testing.assert_allclose(again['losses'], whole['losses'], atol=1e-5)
    np.testing.assert_allclose(again['log'], whole['log'], atol=1e-4)
    np.testing.assert_allclose(again['w'], whole['w'], atol=1e-3, rtol=1e-4)
    assert pd.read_csv(tmp_path/'run'/'phase_log.csv').shape==pd.read_csv(tmp_path/'whole'/'phase_log.csv').shape

def learner(seed=0, **kwargs):
    from fgvc_fast.all import fine_grained_data, fine_grained_learner, set_seed
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=48, seed=0)
    set_seed(seed)
    learn = fine_grained_learner(data.dls(size=32, bs=8, num_workers=0), 'toy_resnet', **kwargs)
    learn.remove_cb(learn.progress)
    return learn

def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit_phases(*args, **kwargs)
    return learn

def test_bad_folders(tmp_path):
    from fgvc_fast.all import Phase
    learn = fit(learner(), 1, folder=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='there is a run in'): fit(learn, 1, folder=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='no file snapshot.json'): fit(learn, resume=tmp_path/'elsewhere')
    with pytest.raises(FineGrainedError, match='leave `folder` out'): fit(learn, resume=True, folder=tmp_path/'other')
    with pytest.raises(FineGrainedError, match='leave `plan` out'): fit(learn, Phase('head', 1), resume=tmp_path/'run')
    with pytest.raises(FineGrainedError, match='does not fit this model'): fit(learner(pool='cov'), resume=tmp_path/'run') # and not half of it
    ts, = (tmp_path/'run').glob('*.safetensors')
    ts.write_bytes(ts.read_bytes()[:-9])
    with pytest.raises(FineGrainedError, match='is damaged'): fit(learn, resume=tmp_path/'run')

def test_features_of_one_pass_in_a_phase():
    from fgvc_fast.all import Callback, Phase
    seen = []
    class Look(Callback):
        def before_batch(self): seen.append(self.model.body.training)
    learn = learner()
    calls = []
    learn.model.body.register_forward_hook(lambda *_: calls.append(1))
    fit(learn, [Phase('head', 5, lr=1e-2, views=1), Phase('all', 1)], cbs=Look())
    n,v = len(learn.dls.train),len(learn.dls.valid)
    assert len(calls)<5*(n+v) # one pass, some probes, and the last epoch; not five epochs
    assert learn.dls.one_batch()[0].ndim==4
    with pytest.raises(FineGrainedError, match='more than the head trains'): fit(learn, Phase('all', 1, views=1))
