"""What a frozen body's closer looks are worth, by cross-validation on the pictures that are not for the test: an experiment that `pool='closer'` was chosen by

    python benchmarks/looks.py

50 classes of CUB, MobileNetV2, pictures of 448 px. Second moments are those in the 64 main directions of the maps of 160 training pictures. Each row is what the head sees; discriminant analysis at its best strength, 5 folds drawn twice. `cost` counts passes at 224 px. The test split is not read.
"""
import torch
from fgvc_fast.all import fine_grained_learner
from fgvc_fast.models.closer import CloserPool, closer_box, cube_mean, cut_square
from fgvc_fast.train.cached_features import frozen_maps
from fgvc_fast.train.solve import Discriminant
from sklearn.model_selection import StratifiedKFold
from torch.nn import functional as F
from _table import cub50, table

half = 224,224
def within(box, inner):
    "`inner`, a box in what `box` holds, as one of the whole picture"
    return torch.cat([box[:,:2]+box[:,2:]*(inner[:,:2]-.5), box[:,2:]*inner[:,2:]], 1)

def three(x, body, pool):
    "What the three looks at pictures `x` say: {name: rows}, the maps, and the boxes"
    maps = body(F.interpolate(x, half, mode='area'))
    box = closer_box(maps)
    look = body(cut_square(x, box, half))
    last = body(cut_square(x, within(box, closer_box(look)), half))
    def moments(*ms): return pool.moments(torch.cat([o.flatten(2) for o in ms], 2))
    return {'whole': cube_mean(maps), 'look': cube_mean(look), 'closer still': cube_mean(last), 'moments': moments(maps), 'moments of all three': moments(maps, look, last)},maps

def seen(x, body, pool):
    "What there is to choose from, of pictures `x`: {name: rows}"
    (res,maps),(other,_) = three(x, body, pool),three(x.flip(3), body, pool)
    mid = body(F.interpolate(x, 320, mode='bilinear', antialias=True))
    def near(box): return cube_mean(body(cut_square(x, box, half)))
    res |= {f'{k}, mirrored': o for k,o in other.items()}
    return res | {'mean': maps.mean((2,3)), '320 px': cube_mean(mid), 'look by 320 px': near(closer_box(mid)), **{f'look of {k:.0%}': near(closer_box(maps, k)) for k in (.6,.7,.9)}}

def best(x, y, seeds=2):
    "Cross-validated accuracy % at the best shrinkage, for each drawing of folds"
    res = []
    for seed in range(seeds):
        hits = {}
        for a,b in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y):
            m,s = x[a].mean(0),x[a].std(0)+1e-5
            d = Discriminant((x[a]-m)/s, y[a], 50)
            for shrink in (.3,.5,.7,.8,.9,.95):
                w,c = d.weights(shrink)
                hits[shrink] = hits.get(shrink, 0)+(F.linear((x[b]-m)/s, w, c).argmax(1)==y[b]).sum().item()
        res.append(100*max(hits.values())/len(y))
    return ', '.join(f'{o:.1f}' for o in res)

def main():
    data,body = cub50()
    learn = fine_grained_learner(data.dls(448, cache=False, num_workers=1), **body)
    model,got,targs = learn.model.eval(),[],[]
    pool = CloserPool(model.body, second=64)
    pool.find_directions(frozen_maps(fine_grained_learner(data.dls(224, cache=False, num_workers=1), **body)))
    with torch.inference_mode():
        for dl in learn.dls.loaders:
            dl = dl.new(shuffle=False, drop_last=False, bs=16)
            with dl.dataset.set_split_idx(1):
                for x,y in dl:
                    got.append(seen(model.norm(x.as_subclass(torch.Tensor)), model.body, pool)), targs.append(y.as_subclass(torch.Tensor))
    rows,y = {k: torch.cat([o[k] for o in got]).clone() for k in got[0]},torch.cat(targs).clone()
    def of(*names, also=''): return torch.cat([rows[o+also] for o in names], 1)
    kinds = [(1, 'mean'), (1, 'whole'), (1, 'whole', 'moments'), (2, '320 px'), (2, 'look'), (2, 'whole', 'look'), *[(2, 'whole', f'look of {o}%') for o in (60,70,90)], (3, '320 px', 'look by 320 px'),
        (3, 'whole', 'look', 'look of 70%'), (3, 'whole', 'look', 'closer still'), (3, 'whole', 'look', 'closer still', 'moments of all three')]
    res = [{'what the head sees': ' + '.join(names), 'cost': cost, 'right %': best(of(*names), y)} for cost,*names in kinds]
    for cost,*names in [kinds[2], *kinds[-2:]]:
        res.append({'what the head sees': f"{' + '.join(names)}; mean of picture and mirror image", 'cost': 2*cost, 'right %': best((of(*names)+of(*names, also=', mirrored'))/2, y)})
    print(data), table(res)

if __name__=='__main__': main()
