"Counting what is confused: ours against fastai's, each in a process of its own: `python benchmarks/errors.py`"
import resource, subprocess, sys, time
from statistics import median
from _table import goals, table

def run(who, classes, pictures):
    "Seconds and peak MB of counting once the predictions are there"
    import torch
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.interpret import ClassificationInterpretation
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fgvc_fast.interpret.errors import FineGrainedInterpretation
    torch.manual_seed(0)
    targs = torch.randint(classes, (pictures,))
    preds = torch.where(torch.rand(pictures)<.8, targs, torch.randint(classes, (pictures,)))
    dls = DataLoaders(*[DataLoader(list(range(8)), bs=4, num_workers=0)]*2)
    dls.vocab = dls.valid.vocab = [f'class {i}' for i in range(classes)]
    learn = Learner(dls, torch.nn.Linear(1, classes), loss_func=CrossEntropyLossFlat())
    if who=='fgvc_fast': interp = FineGrainedInterpretation(learn, dls.valid, preds, targs, torch.ones(pictures), torch.ones(pictures))
    else: # the counting alone, on the same labels: fastai would first predict, and keep all probabilities
        interp = ClassificationInterpretation(learn, dls.valid, torch.ones(pictures))
        interp.vocab,learn.get_preds = dls.vocab,lambda **kw: (None,targs,preds)
    before,t = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,time.perf_counter()
    interp.confusion_matrix()
    interp.most_confused()
    print(time.perf_counter()-t, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024)

def main():
    rows = []
    for who,classes,pictures in (('fastai',200,5794), ('fgvc_fast',200,5794), ('fgvc_fast',1000,50_000)):
        res = [list(map(float, subprocess.run([sys.executable, '-W', 'ignore', __file__, who, str(classes), str(pictures)], capture_output=True, text=True,
            check=True).stdout.split()[-2:])) for _ in range(3)]
        rows.append(dict(by=who, classes=classes, pictures=pictures, median_s=median(o[0] for o in res), most_MB=max(o[1] for o in res)))
    table(rows)
    fastai,cub,big = rows
    goals(('1,000 classes × 50,000 pictures counted in under a second', f"{big['median_s']:.3f} s", big['median_s']<1),
        ('... in under 100 MB', f"{big['most_MB']:.0f} MB", big['most_MB']<100),
        ("at CUB's size no slower than fastai", f"{cub['median_s']/fastai['median_s']:.4f} ×", cub['median_s']<fastai['median_s']))

if __name__=='__main__': run(sys.argv[1], *map(int, sys.argv[2:])) if len(sys.argv)>1 else main()
