"Build README.md from index.ipynb, and the picture in it: `python nbs/_readme.py`"
import json, re
from pathlib import Path

root = Path(__file__).parent.parent

def cell_md(c):
    "Markdown for one cell: prose with links as they go from where README.md is, code in a fence, nothing of what is hidden"
    src = ''.join(c['source'])
    if c['cell_type']=='markdown': return re.sub(r'\]\(\.\./', '](', re.sub(r'\]\((images|api|lessons|guide)/', r'](nbs/\1/', src))
    if re.match(r'#\|\s*(hide|default_exp)', src): return ''
    return f"```python\n{re.sub(r'(?m)^#([|]| chkstyle).*$', '', src).strip()}\n```"

def readme():
    "The text of README.md"
    cells = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(filter(None, map(cell_md, cells))) + '\n'

def picture(fn):
    "Two families of toy birds, all their species; a ring where they differ"
    import matplotlib.pyplot as plt
    from fgvc_fast.data.all import read_image
    from fgvc_fast.datasets.all import toy_birds
    data = toy_birds(per_class=8, size=192, difficulty=.3, seed=1)
    parts = data.parts.set_index(['item','part'])
    fig,axs = plt.subplots(2, 5, figsize=(9,4.7))
    for row,(fam,species) in zip(axs, data.items.groupby('family').label.unique().items()):
        for ax,s in zip(row, species):
            it = data.items[data.items.label==s]
            i = next(i for i in it.index if parts.loc[(i, it.differs[i])].visible)
            p = parts.loc[(i, it.differs[i])]
            ax.imshow(read_image(data.path(i)))
            ax.add_patch(plt.Circle((p.x, p.y), 26, fill=False, ec='white', lw=1.5))
            ax.set_title(s.replace(f' {fam}', f'\n{fam}'), fontsize=8)
            ax.axis('off')
    fig.tight_layout(pad=.4, h_pad=1.4)
    fn.parent.mkdir(exist_ok=True)
    fig.savefig(fn, dpi=100, pil_kwargs=dict(quality=88))

def confused(fn):
    "The most confused pairs of a short training, on validation pictures"
    import matplotlib.pyplot as plt
    from fgvc_fast.all import FineGrainedInterpretation, fine_grained_data, fine_grained_learner, set_seed
    set_seed(0)
    dls = fine_grained_data('toy_birds').dls(size=96, seed=0, num_workers=0)
    learn = fine_grained_learner(dls, 'toy_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(4)
    FineGrainedInterpretation.from_learner(learn).plot_confused_pairs(2, 2)
    plt.savefig(fn, dpi=100, pil_kwargs=dict(quality=88))

if __name__=='__main__':
    (root/'README.md').write_text(readme(), encoding='utf-8')
    picture(root/'nbs'/'images'/'toy_birds.jpg')
    confused(root/'nbs'/'images'/'confused.jpg')
