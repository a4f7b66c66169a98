"Run logs: what was trained is what can be read back, over phases, stops and whatever else a learner is asked"
import json, pathlib, re, struct, sys, time
import pandas as pd, pytest, random, torch
from fastai.basics import CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, accuracy, params
from fastai.callback.schedule import lr_find # chkstyle: ignore (patches Learner)
from torch import nn
from torch.utils.data import TensorDataset
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.train.precision import CPUAutocast
from fgvc_fast.train.all import Phase
from fgvc_fast.track import CSVLog, tensorboard_log, wandb_log
from stops import StopAt

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU()),nn.Linear(4, 2)
    def forward(self, x): return self.head(self.body(x))
    def group_names(self): return ['body','head']

def learner(n=28, n_dls=2, **kwargs):
    "28 items in batches of 8, 8, 8 and 4"
    torch.manual_seed(1), random.seed(1)
    y = torch.arange(n)%2
    dls = DataLoaders(*[DataLoader(TensorDataset(torch.randn(n, 4) + y[:,None], y), bs=8, shuffle=s, num_workers=0) for s in (True,False)][:n_dls])
    learn = Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), splitter=lambda m: L(m.body, m.head).map(params), metrics=accuracy, **kwargs)
    learn.remove_cb(learn.progress)
    return learn

plan = [Phase('head', 1, lr=1e-2), Phase('all', 2, lr=1e-2)]

def fit(learn, *args, **kwargs):
    with learn.no_logging(): learn.fit_phases(*args, **kwargs)
    return learn

def same(got, want): assert got==pytest.approx([float(o) for o in want], rel=1e-5)

# CSV

def test_csv_has_every_epoch_of_every_phase(tmp_path):
    learn = fit(learner(cbs=CSVLog(tmp_path/'logs'/'a.csv')), plan)
    learn.validate(), learn.get_preds()
    with learn.no_logging(): learn.lr_find(num_it=8, show_plot=False)
    log,want = pd.read_csv(tmp_path/'logs'/'a.csv'),learn.phase_log
    assert list(log.columns)==['phase','epoch','steps','train_loss','valid_loss','accuracy']
    assert log.phase.tolist()==[1,2,2] and log.epoch.tolist()==[0,1,2] and log.steps.tolist()==[4,8,12]
    for k in ('train_loss','valid_loss','accuracy'): same(log[k].tolist(), want[k])

def test_csv_of_a_plain_fit_a_second_run_and_no_validation_set(tmp_path):
    learn = learner(cbs=CSVLog(tmp_path/'a.csv'))
    with learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    assert pd.read_csv(tmp_path/'a.csv').phase.tolist()==[0,0]
    fit(learn, Phase('all', 1))
    assert pd.read_csv(tmp_path/'a.csv').phase.tolist()==[1] # a run of its own
    learn = fit(learner(n_dls=1), plan, cbs=CSVLog(tmp_path/'b.csv'))
    log = pd.read_csv(tmp_path/'b.csv')
    assert len(log)==3 and log.valid_loss.isna().all()

@pytest.mark.parametrize('n', [2, 6, 10])
def test_csv_of_a_run_that_goes_on(n, tmp_path):
    fit(learner(), plan, cbs=CSVLog(tmp_path/'whole.csv'))
    learn = fit(learner(), plan, cbs=[CSVLog(tmp_path/'a.csv'), StopAt('before_batch', n, training=True)])
    assert not (tmp_path/'a.csv').exists() or len(pd.read_csv(tmp_path/'a.csv'))==len(learn.phase_log)
    fit(learn, resume=True, cbs=CSVLog(tmp_path/'a.csv'))
    assert (tmp_path/'a.csv').read_text()==(tmp_path/'whole.csv').read_text()

# TensorBoard

def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log = EventAccumulator(str(folder), size_guidance=dict(tensors=0, scalars=0)).Reload()
    text = [(o.step, o.tensor_proto.string_val[0].decode()) for o in log.Tensors('phase/text_summary')] if 'phase/text_summary' in log.Tags()['tensors'] else []
    return {k: [(o.step, o.value) for o in log.Scalars(k)] for k in log.Tags()['scalars']},text

@pytest.fixture
def tb(): pytest.importorskip('tensorboard')

def assert_whole(got, learn, n=12):
    steps,vals = zip(*got['train_loss'])
    assert list(steps)==list(range(1, n+1))
    same(list(vals), learn.recorder.losses)
    for i,k in enumerate(('body','head')): same([v for _,v in got[f'lr/{k}']], [o[i] for r in learn._phase_run.rates for o in r])
    assert [v for _,v in got['phase']]==[1]*4+[2]*8
    for k in ('valid_loss','accuracy'):
        assert [s for s,_ in got[k]]==[4,8,12]
        same([v for _,v in got[k]], learn.phase_log[k])

def test_tensorboard_has_one_axis_over_phases(tb, tmp_path):
    learn = fit(learner(cbs=tensorboard_log(tmp_path/'a')), plan)
    losses = learn.recorder.losses
    learn.validate(), learn.get_preds()
    with learn.no_logging(): learn.lr_find(num_it=8, show_plot=False)
    learn.recorder.losses = losses
    got,text = curves(tmp_path/'a')
    assert set(got)=={'train_loss','valid_loss','accuracy','phase','lr/body','lr/head'}
    assert_whole(got, learn)
    assert [s for s,_ in text]==[0,4] and text[1][1].startswith('Phase 2 of 2: all')

def test_a_log_changes_nothing(tb, tmp_path):
    plain,logged = fit(learner(), plan),fit(learner(), plan, cbs=[tensorboard_log(tmp_path/'a'), CSVLog(tmp_path/'a.csv')])
    assert plain.recorder.values==logged.recorder.values

@pytest.mark.parametrize('n', [2, 6, 11])
def test_tensorboard_of_a_run_that_goes_on(n, tb, tmp_path):
    learn = fit(learner(), plan, cbs=[tensorboard_log(tmp_path/'a'), StopAt('before_batch', n, training=True)])
    fit(learn, resume=True, cbs=tensorboard_log(tmp_path/'a')) # in a new kernel it is another callback
    assert_whole(curves(tmp_path/'a')[0], learn)

def test_tensorboard_of_plain_and_broken_fits(tb, tmp_path):
    learn = learner(cbs=tensorboard_log(tmp_path/'a'))
    for ex in (KeyboardInterrupt, CancelFitException):
        try:
            with learn.no_logging(): learn.fit(1, 1e-2, cbs=StopAt('before_batch', 2, ex, training=True))
        except KeyboardInterrupt: pass
    with learn.no_logging(): learn.fit(2, 1e-2)
    got,text = curves(tmp_path/'a')
    assert [s for s,_ in got['train_loss']]==list(range(1, 9)) and not text
    assert {v for _,v in got['phase']}=={0}

def test_tensorboard_without_a_validation_set_and_with_mixed_precision(tb, tmp_path):
    learn = fit(learner(n_dls=1), plan, cbs=[tensorboard_log(tmp_path/'a'), CPUAutocast()])
    got,_ = curves(tmp_path/'a')
    assert len(got['train_loss'])==12 and 'valid_loss' not in got

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=2, species=2, per_class=8, size=32).dls(size=32, bs=8, num_workers=0)

def test_a_learner_with_a_log_can_be_exported(tb, birds, tmp_path):
    learn = fit(fine_grained_learner(birds, 'toy_resnet', cbs=tensorboard_log(tmp_path/'a'), path=tmp_path), Phase('head', 1))
    learn.export()
    assert (tmp_path/'export.pkl').exists()

# Weights & Biases

def _records(folder):
    "The records in the file of an offline run: blocks of 32 kB as in LevelDB's log, in them protocol buffers"
    pb = pytest.importorskip('wandb.proto.wandb_internal_pb2')
    b,i,part = next(pathlib.Path(folder).rglob('*.wandb')).read_bytes(),7,b''
    while i+7<=len(b):
        if 32768-i%32768<7: i += 32768-i%32768
        _,n,kind = struct.unpack('<IHB', b[i:i+7])
        part,i = part+b[i+7:i+7+n],i+7+n
        if kind in (1,4): # whole, or the last part
            r = pb.Record()
            r.ParseFromString(part)
            part = b''
            yield r

def records(folder):
    "All of them: W&B's own process may write the last ones after `finish` has returned"
    for _ in range(3000):
        res = list(_records(folder))
        if any(r.HasField('exit') for r in res): return res
        time.sleep(.1)
    pytest.fail('the log has no end')

def history(folder): return [{'/'.join(o.nested_key) or o.key: json.loads(o.value_json) for o in r.history.item} for r in records(folder) if r.HasField('history')]

@pytest.fixture
def wandb(monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline'), monkeypatch.setenv('WANDB_SILENT', 'true')
    yield wandb
    wandb.finish()

def test_wandb_offline_over_phases_and_a_stop(wandb, tmp_path):
    run = wandb.init(project='birds', dir=tmp_path)
    wandb.log(dict(mine=1)) # somebody logged before
    learn = learner()
    learn.made_of = dict(arch='tiny', pool='avg')
    fit(learn, plan, cbs=[wandb_log(), StopAt('before_batch', 7, training=True)]) # in the second phase
    learn.validate()
    fit(learn, resume=True, cbs=wandb_log())
    last,config = dict(run.summary),dict(run.config)
    wandb.finish()
    rows = history(tmp_path)
    train,valid = [o for o in rows if 'train_loss' in o],[o for o in rows if 'valid_loss' in o]
    assert [o['step'] for o in train]==[1,2,3,4, 5,6, 5,6,7,8,9,10,11,12]
    assert [o['phase'] for o in train]==[1]*4 + [2]*10 and train[-1]['phase_title'].startswith('Phase 2 of 2: all')
    same([o['train_loss'] for o in train[:4]+train[6:]], learn.recorder.losses)
    same([o['lr/head'] for o in train[:4]+train[6:]], learn.recorder.lrs)
    same([o['valid_loss'] for o in valid], learn.phase_log.valid_loss)
    assert [o['step'] for o in valid]==[4,8,12] and [o['epoch'] for o in valid]==[1,2,3]
    assert last['accuracy']==pytest.approx(learn.phase_log.accuracy.iloc[-1]) and last['step']==12
    assert config['arch']=='tiny' and config['batch_size']==8 and 'Phase' in config['plan'][0] and config['groups']=='body, head'
    defined = [r.metric for r in records(tmp_path) if r.HasField('metric')]
    assert any(o.glob_name=='*' and o.step_metric=='step' for o in defined)

def test_wandb_with_predictions_of_a_fine_grained_learner(wandb, birds, tmp_path):
    wandb.init(project='birds', dir=tmp_path)
    learn = fine_grained_learner(birds, 'toy_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_phases([Phase('head', 1), Phase('all', 1)], cbs=wandb_log(log_preds=True, n_preds=3))
    wandb.finish()
    rows = history(tmp_path)
    assert [o['phase'] for o in rows if 'valid_loss' in o]==[1,2]
    assert sum(any(k.startswith('Prediction_Samples') for k in o) for o in rows)==2

def test_wandb_wants_a_run(wandb):
    learn = learner()
    with learn.no_logging(), pytest.raises(FineGrainedError, match=r'call `wandb.init\(project=...\)` first'): learn.fit(1, cbs=wandb_log())

@pytest.mark.parametrize('name, f', [('tensorboard', lambda: tensorboard_log('a')), ('wandb', wandb_log)])
def test_one_line_where_a_package_is_missing(name, f, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FineGrainedError, match=re.escape(f'{name} is not installed: pip install "fgvc_fast[{name}]"')): f()

def test_nothing_heavy_is_imported_before_it_is_asked_for():
    src = (pathlib.Path(__file__).parent.parent/'fgvc_fast'/'track.py').read_text()
    assert not re.search(r'(?m)^(from|import) .*(wandb|tensorboard)', src)

def test_a_run_that_goes_on_into_a_new_file_has_a_header(tmp_path):
    fit(learner(), plan, cbs=StopAt('before_validate', 2), folder=tmp_path/'run')
    learn = fit(learner(), resume=tmp_path/'run', cbs=CSVLog(tmp_path/'log.csv'))
    log = pd.read_csv(tmp_path/'log.csv')
    assert log.epoch.tolist()==[1,2] and log.accuracy.tolist()==pytest.approx(learn.phase_log.accuracy.tolist()[1:])

@pytest.mark.parametrize('bad', [3, None, '', True, ['x']], ids=str)
def test_what_is_no_path(bad, tmp_path):
    with pytest.raises(FineGrainedError, match='fname='): CSVLog(bad)
    with pytest.raises(FineGrainedError, match='folder='): tensorboard_log(bad)
    with pytest.raises(FineGrainedError, match='is a folder'): CSVLog(tmp_path)
