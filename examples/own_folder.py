"""From a folder of pictures, one folder inside it for each class, to a model that was tested and is kept

    python examples/own_folder.py photos/ --to model --epochs 8

Copy it, and change what you like: every line is one step, and each has a page of its own in the documentation.
"""
import argparse, matplotlib.pyplot as plt
from fgvc_fast.all import FineGrainedInterpretation, accuracy, fine_grained_data, fine_grained_learner, load_bundle

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('photos', help='a folder that holds a folder of pictures for each class')
    p.add_argument('--to', default='model', help='folder for the model')
    p.add_argument('--arch', default='resnet18', help="any model of timm (its weights are fetched once); 'toy_resnet' needs no network, and knows little")
    p.add_argument('--size', type=int, default=224, help='pixels of what the model sees')
    p.add_argument('--epochs', type=int, default=8)
    args = p.parse_args()

    data = fine_grained_data(args.photos)
    if not len(data['test']): data = data.split(valid=.15, test=.15) # no folder called test: put some of each class aside
    print(data)
    learn = fine_grained_learner(data.dls(size=args.size), args.arch, metrics=accuracy)
    learn.fit_phases(args.epochs) # the head first, then everything
    print(learn.test()) # once, at the end: an honest figure, as long as nothing is chosen by it

    interp = FineGrainedInterpretation.from_learner(learn) # validation pictures, which you may choose by
    pairs = interp.confused_pairs()
    print(pairs.head())
    if len(pairs):
        interp.plot_confused_pairs() # side by side, with what the model looked at
        plt.savefig('confused.png')

    learn.save_bundle(args.to)
    picture = data.path(data['test'].index[0])
    print(load_bundle(args.to).predict(picture, k=3).T) # `from fgvc_fast import load_bundle` is enough for this, without fastai

if __name__=='__main__': main() # worker processes read this file too, and must not train
