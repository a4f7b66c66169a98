"""The published studies, small: which one, on which data, is said by name; the table is printed as markdown

    python benchmarks/studies.py tricks --data toy --seeds 3
    python benchmarks/studies.py layers --data cub50 --seeds 3 --folder studies
    python benchmarks/studies.py all --data toy --tiny

Runs stand in `--folder`, one file a study; stop it at any time, and the same command goes on. Toy birds are divided anew, 30 % of the training pictures to choose by; so are the 50 classes of CUB. `--tiny` shows that everything works: one seed, the shortest plan, few pictures.
"""
import argparse, sys
from functools import partial
from pathlib import Path
from fgvc_fast.all import fine_grained_data
from fgvc_fast.studies import all_that_help, batch_study, depth_study, layers_study, reinit_study, transfer_study, tricks_study, vit_study
from _table import cub50

def some(data, tiny): return (data.subset(classes=4, per_class=8) if tiny else data).split(valid=.3, seed=0)

def toy(seed, tiny): return some(fine_grained_data('toy_birds', per_class=12 if tiny else 60, seed=seed), tiny)

def load(name, tiny):
    "(data set, options of the body that has weights, of all studies)"
    if name=='toy': return toy(0, tiny),dict(arch='toy_resnet'),dict(size=96)
    data,body = cub50()
    return some(data, tiny),body,dict(size=128)

def small(study, name='toy', seeds=3, folder='studies', tiny=False):
    "The study called `study` on the data called `name`, of a size that fits this machine"
    data,body,kw = load(name, tiny)
    def epochs(n, least=1): return least if tiny else n
    pools = {'average pool': dict(body), 'bilinear pool (B-CNN)': dict(body, pool='bilinear')}
    known = dict(
        depth  = partial(depth_study, data, ['test_resnet','resnet10t','resnet14t'], [False], epochs=epochs(5), **kw | dict(size=64)),
        batch  = partial(batch_study, data, epochs=epochs(6), **kw | body),
        layers = partial(layers_study, data, epochs=epochs(5, 2), **kw | body),
        tricks = partial(tricks_study, data, epochs=epochs(5), **kw | body),
        vit    = partial(vit_study, data, ['test_vit','test_vit2'], [3], epochs(6, 2), pretrained=False, **kw),
        reinit = partial(reinit_study, data, pools, [0,1,2], epochs(5, 3), **kw),
        transfer = partial(transfer_study, data, toy(int(name=='toy'), tiny), epochs=epochs(6), source_epochs=epochs(6), **kw | body))
    return known[study](name=f"{study} {name}{' tiny'*tiny}", seeds=1 if tiny else seeds, folder=folder)

names = ['depth','batch','layers','tricks','vit','reinit','transfer']

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('study', choices=[*names,'all'])
    p.add_argument('--data', choices=['toy','cub50'], default='toy')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--folder', type=Path, default=Path('studies'))
    p.add_argument('--tiny', action='store_true')
    args = p.parse_args()
    for o in names if args.study=='all' else [args.study]:
        study = small(o, args.data, args.seeds, args.folder, args.tiny)
        study.run(progress=sys.stderr.isatty())
        if o=='tricks' and not study.todo():
            try: study = all_that_help(study).run(progress=sys.stderr.isatty())
            except ValueError as e: print(e)
        print(f'\n{study.to_markdown()}\n', flush=True)

if __name__=='__main__': main()
