"Whatever a figure says can be read, and what draws it hands back what it drew on"
import matplotlib.pyplot as plt, pytest, torch
import fgvc_fast.data.merge # chkstyle: ignore (data sets rename their labels)
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import toy_birds
from fgvc_fast.interpret.all import FeatureHierarchy, FineGrainedInterpretation
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.pictures import figure_size, picture_grid
import fgvc_fast.train.plot # chkstyle: ignore (plans draw themselves)

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.filterwarnings('ignore')]
names = ['Bohemian Waxwing (juvenile, winter plumage)', 'Bohemian Waxwing (adult, winter plumage)', 'Northern Rough-winged Swallow of the South', 'Wren']

@pytest.fixture(scope='module')
def interp(tmp_path_factory):
    data = toy_birds(families=2, species=2, per_class=8, size=48, path=tmp_path_factory.mktemp('toys')).split(valid=.5)
    data = data.rename(dict(zip(data.vocab, names)))
    torch.manual_seed(0)
    learn = fine_grained_learner(data.dls(32, bs=8, num_workers=0, cache=False, device='cpu'), 'toy_resnet')
    with learn.no_bar(): yield FineGrainedInterpretation.from_learner(learn)

grids = dict(show=lambda i: i.dls.data.show(n=5, cols=3), show_small=lambda i: i.dls.data.show(n=4, size=1.2), show_batch=lambda i: i.dls.show_batch(max_n=4),
    show_boxes=lambda i: i.dls.show_batch(max_n=3, boxes=True),
    valid_batch=lambda i: i.dls.valid.show_batch(max_n=5, nrows=1), show_results=lambda i: i.dls.valid.show_results(i.dls.valid.one_batch(),
    i.dls.valid.one_batch()[1], max_n=3),
    show_cam=lambda i: i.learn.show_cam(n=4), contrast=lambda i: i.learn.show_cam(n=3, target=(names[0],names[2])),
    losses=lambda i: i.plot_top_losses(4, ncols=3),
    pairs=lambda i: i.plot_confused_pairs(2, 2), pair=lambda i: i.plot_pair(*names[:2], k=2, against=None), narrow=lambda i: i.plot_pair(*names[:2], k=1),
    errors=lambda i: i.plot_errors(2),
    neighbors=lambda i: i.learn.retrieve(0, 4).show(), stages=lambda i: FeatureHierarchy.from_learner(i.learn).show(0, 2),
    fields=lambda i: FeatureHierarchy.from_learner(i.learn).plot_receptive_fields([0]))
single = dict(per_class=lambda i, ax: i.plot_per_class(ax=ax), matrix=lambda i, ax: i.plot_confusion_matrix(ax=ax),
    calibration=lambda i, ax: i.plot_calibration(ax=ax), coverage=lambda i, ax: i.plot_level_coverage(ax=ax))

def texts(fig): return [o for o in fig.findobj(plt.Text) if o.get_visible() and o.get_text().strip()]

@pytest.mark.parametrize('key', grids)
def test_captions_are_large_and_apart(interp, key):
    "Long names do not run into their neighbours, and no caption lies on a picture"
    axs = grids[key](interp)
    fig = axs.flat[0].figure.figure
    fig.canvas.draw()
    assert all(o.get_fontsize()>=9 for o in texts(fig))
    axs = [ax for ax in axs.flat if ax.images]
    assert axs and all(ax.figure.figure is fig for ax in axs)
    said,seen = [ax.title.get_window_extent() for ax in axs if ax.get_title()],[ax.get_window_extent() for ax in axs]
    assert not any(a.overlaps(b) for i,a in enumerate(said) for b in said[:i])
    assert not any(t.y0<p.y1-1 and p.y0+1<t.y1 and t.x0<p.x1-1 and p.x0+1<t.x1 for t in said for p in seen)
    assert all(abs(o.width-seen[0].width)<1 for o in seen) or key in ('stages','show','show_small')
    plt.close('all')

@pytest.mark.parametrize('key', single)
def test_one_axes_may_be_given(interp, key):
    ax = plt.subplots()[1]
    assert single[key](interp, ax) is ax
    own = single[key](interp, None)
    assert own is not ax
    own.figure.canvas.draw()
    assert all(o.get_fontsize()>=9 for o in texts(own.figure))
    plt.close('all')

def test_plans(interp):
    axs = interp.learn.plot_phases(3, figsize=(5,2))
    assert len(axs)==1 and tuple(axs[0].figure.get_size_inches())==(5,2)
    assert all(o.get_fontsize()>=9 for o in texts(axs[0].figure))
    plt.close('all')

@pytest.mark.parametrize('n,kw,shape', [(1,{},(1,1)), (5,{},(2,3)), (5,dict(nrows=1),(1,5)), (5,dict(ncols=2),(3,2)), (2,dict(ncols=7),(1,2))])
def test_shape_of_a_grid(n, kw, shape):
    axs = picture_grid(['a']*n, **kw)
    assert axs.shape==(n,) and axs[0].get_gridspec().get_geometry()==shape and len(axs[0].figure.axes)==n
    plt.close('all')

@pytest.mark.parametrize('figsize', [5, (1,), (0,1), ('a',2), (float('nan'),1), (1,2,3)])
def test_sizes_that_are_none(figsize):
    with pytest.raises(FineGrainedError, match='width and height'): figure_size(figsize, 1, 1)
