"""`fit_head` beside scikit-learn's cross-validated logistic regression, on the same rows of a frozen body

    python benchmarks/solved_head.py --seeds 3           # cub50, grocery81 and toy birds
    python benchmarks/solved_head.py --data grocery81 --size 320 --pool gem

The rows are those of the training and validation splits (the test split is not read). Each seed sets aside 30 % of the pictures of each class and learns from the rest: all of it, so many of each class, a tail (class i of n keeps the share 20^(-i/n)), or with
a tenth of the labels drawn anew. Both are given the same pictures; differences are paired.
"""
import argparse, numpy as np, time, torch, warnings
from fgvc_fast.all import fine_grained_data, fine_grained_learner
from fgvc_fast.train.cached_features import frozen_rows
from fgvc_fast.train.solve import solve_head
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from _table import cub50, goals, shared, spread, table

def rows_of(name, size, pool):
    "Rows and labels of the pictures that are not for the test"
    data,body = cub50()
    if name=='grocery81': data = fine_grained_data(shared('data', 'grocery81'))
    if name=='toy birds': data,body = fine_grained_data('toy_birds'),dict(arch='toy_resnet')
    learn = fine_grained_learner(data.dls(96 if name=='toy birds' else size, num_workers=2), **body, pool=pool)
    with learn.no_bar(): res = [frozen_rows(learn, i) for i in (0,1)]
    return [torch.cat(o) for o in zip(*res)]

def parts(y, way, seed):
    "Places to learn from, places to ask about, and labels to learn"
    rng,learn,ask = np.random.default_rng(seed),[],[]
    n = len(np.unique(y))
    for k,c in enumerate(np.unique(y)):
        i = rng.permutation(np.flatnonzero(y==c))
        a,b = np.split(i, [max(round(.3*len(i)), 1)])
        if way.endswith('a class'): b = b[:int(way.split()[0])]
        if way=='long tail': b = b[:max(round(len(b)*20**(-k/n)), 1)]
        ask.append(a), learn.append(b)
    learn,ask = np.concatenate(learn),np.concatenate(ask)
    own = y[learn].copy()
    if way=='noisy labels':
        bad = rng.random(len(own))<.1
        own[bad] = rng.choice(np.unique(y), bad.sum())
    return learn,ask,own

def theirs(x, y, held):
    "scikit-learn: standardized rows, C by cross-validation"
    m,s = x.mean(0),x.std(0)+1e-5
    x,held = (x-m)/s,(held-m)/s
    cs,k = (1e-3,1e-2,1e-1,1.),min(5, np.bincount(y)[np.bincount(y)>0].min())
    if k<2: c = 1e-1
    else:
        hits = {c: 0 for c in cs}
        for a,b in StratifiedKFold(k, shuffle=True, random_state=0).split(x, y):
            for c in cs: hits[c] += (LogisticRegression(C=c, max_iter=200).fit(x[a], y[a]).predict(x[b])==y[b]).sum()
        c = max(cs, key=hits.get)
    return LogisticRegression(C=c, max_iter=500).fit(x, y).predict(held)

def ours(x, y, held):
    names,own = np.unique(y, return_inverse=True)
    x,held = torch.from_numpy(x),torch.from_numpy(held)
    w,b,t = solve_head(x, torch.from_numpy(own), len(names))
    m,s = x.mean(0),(x.var(0, correction=0)+1e-5).sqrt()
    best = t[t.chosen].iloc[0]
    return names[(((held-m)/s)@w.T+b).argmax(1).numpy()],f'{best.method} {best.strength}'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', nargs='*', default=['cub50','grocery81','toy birds'])
    p.add_argument('--size', type=int, default=224)
    p.add_argument('--pool', default='avg')
    p.add_argument('--ways', nargs='*', default=['all','1 a class','2 a class','5 a class','10 a class','long tail','noisy labels'])
    p.add_argument('--seeds', type=int, default=3)
    args = p.parse_args()
    warnings.filterwarnings('ignore')
    res,worst = [],[]
    for name in args.data:
        x,y = [o.numpy() for o in rows_of(name, args.size, args.pool)]
        for way in args.ways:
            acc,secs,chosen = [],np.zeros(2),[]
            for seed in range(args.seeds):
                learn,ask,own = parts(y, way, seed)
                t = time.perf_counter()
                a,best = ours(x[learn], own, x[ask])
                mid = time.perf_counter()
                b = theirs(x[learn], own, x[ask])
                secs += mid-t,time.perf_counter()-mid
                acc.append([100*(o==y[ask]).mean() for o in (a, b)])
                chosen.append(best)
            a,b = np.array(acc).T
            worst.append((a-b).mean())
            res.append({'': f'{name}, {way}', 'fit_head': spread(a), 'scikit-learn': spread(b), 'apart': spread(a-b, '+'), 'seconds': f'{secs[0]/args.seeds:.1f}',
                'its': f'{secs[1]/args.seeds:.1f}', 'chosen': ', '.join(dict.fromkeys(chosen))})
            print(res[-1], flush=True)
    table(res)
    goals(('nowhere more than 0.5 points below scikit-learn', f'{min(worst):+.1f}', min(worst)>=-.5))

if __name__=='__main__': main()
