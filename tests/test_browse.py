"What is shown of mistakes: the right pictures, names that are hostile, loaders without a table, and files that stand alone"
import re
from types import SimpleNamespace
import matplotlib.pyplot as plt
import numpy as np, pytest
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import fine_grained_data, toy_birds
from fgvc_fast.interpret.all import FineGrainedInterpretation
from fgvc_fast.learner import fine_grained_learner

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    data = toy_birds(families=2, species=3, per_class=16, size=64, path=tmp_path_factory.mktemp('toys'))
    items = data.items.assign(label=data.items.label.replace({data.vocab[0]: '<b>Finch & "Co"</b>'}), path=[str(data.path(i)) for i in data.items.index])
    hostile = fine_grained_data(items[['path','label','family','split']], levels=['family','label'])
    set_seed(0)
    learn = fine_grained_learner(hostile.dls(size=64, bs=8, seed=0, num_workers=0, device='cpu'), 'toy_resnet', metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(1)
    return learn

@pytest.fixture(scope='module')
def interp(learn): return FineGrainedInterpretation.from_learner(learn)

def test_the_file_stands_alone_and_names_stay_names(interp, tmp_path):
    text = interp.to_html(tmp_path/'a.html', n=9, k=2, title='A <script>').read_text(encoding='utf-8')
    pairs = interp.confused_pairs().head(9)
    assert text.count('<section>')==text.count('<option')==len(pairs)
    assert '<b>Finch' not in text and 'A <script>' not in text and text.count('<script>')==1
    if any('Finch &' in o for o in [*pairs.one, *pairs.other]): assert '&lt;b&gt;Finch &amp;' in text
    assert not re.search(r'(src|href)="(?!data:image/jpeg;base64,)', text) and '@import' not in text and 'http' not in text

def test_errors_show_what_was_said_and_what_is(interp):
    n = int((interp.preds!=interp.targs).sum())
    interp.plot_errors(2)
    axs = plt.gcf().axes
    assert len(axs)==6*min(2, n)
    wrong = (interp.preds!=interp.targs).nonzero()[:,0]
    first = wrong[interp.probs[wrong].argmax()]
    assert (f'{interp.probs[first]:.0%}' in axs[0].get_title() and interp.vocab[interp.preds[first]].split()[0] in axs[1].get_title()
        and interp.vocab[interp.targs[first]].split()[0] in axs[2].get_title())
    plt.close('all')

def test_all_right(interp, capsys):
    import copy
    fine = copy.copy(interp)
    fine.preds = fine.targs
    fine.plot_errors()
    assert 'every answer is right' in capsys.readouterr().out
    assert not len(fine.label_issues()) and not fine.error_levels().mistakes.sum()
    with pytest.raises(FineGrainedError, match='nothing to write'): fine.to_html('nowhere.html')

def test_suspects_are_the_surest_mistakes(interp):
    s = interp.label_issues(.2)
    wrong = (interp.preds!=interp.targs) & (interp.probs>=.2)
    assert len(s)==wrong.sum() and s.confidence.is_monotonic_decreasing and (s.label!=s.predicted).all()
    assert list(s.picture)==[str(interp.learn.dls.data.path(o)) for o in s['item']]

def test_per_class_chart_and_levels(interp):
    interp.plot_per_class(4)
    ax = plt.gcf().axes[0]
    shown = [t.get_text() for t in ax.get_yticklabels()]
    worst = interp.per_class()
    assert shown[::-1]==list(worst[worst.pictures>0].label.head(4))
    plt.close('all')
    e = interp.error_levels()
    up = interp.learn.dls.data.items.groupby('label').family.first()
    wrong = [(interp.vocab[a],interp.vocab[b]) for a,b in zip(interp.targs, interp.preds) if a!=b]
    assert e.mistakes['family']==sum(up[a]==up[b] for a,b in wrong) and e.mistakes.sum()==len(wrong)

def test_a_pair_that_is_none(interp):
    with pytest.raises(FineGrainedError, match="no 'Emu'"): interp.plot_pair('Emu', interp.vocab[1])

def test_as_many_columns_as_pictures(interp):
    "Where there are fewer than asked for, no empty columns make the others small"
    one,other = interp.confused_pairs().iloc[0][['one','other']]
    most = max((interp.targs==list(interp.vocab).index(o)).sum().item() for o in (one,other))
    for k in (1, most, most+3):
        interp.plot_pair(one, other, k)
        assert len(plt.gcf().get_axes())==2*min(k, most)
        plt.close('all')

def test_widget_without_its_library(interp, monkeypatch):
    import builtins
    real = builtins.__import__
    def no(name, *args, **kw):
        if name=='ipywidgets': raise ImportError(name)
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', no)
    with pytest.raises(FineGrainedError, match='pip install ipywidgets'): interp.walk()

def test_map_of_classes(learn):
    ax = learn.plot_embeddings('train', by='label', how=SimpleNamespace(fit_transform=lambda o: o[:,:2]))
    dots = ax.collections[0]
    np.testing.assert_allclose(dots.get_offsets(), learn.embeddings()[0][:,:2].float())
    of = {}
    for t,c in zip(learn.embeddings()[1].tolist(), map(tuple, dots.get_facecolors())): of.setdefault(learn.dls.vocab[t], set()).add(c)
    legend = {t.get_text(): tuple(h.get_facecolors()[0]) for t,h in zip(ax.get_legend().get_texts(), ax.get_legend().legend_handles)}
    assert {k: {legend[k]} for k in legend}==of
    plt.close('all')
