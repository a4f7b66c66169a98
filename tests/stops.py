"What several test files share: somebody presses stop, or something breaks, at a chosen moment"
from fastai.callback.core import Callback

class StopAt(Callback):
    "Raise `ex` the `n`th time that `ev` happens: in training or not, or in either (`None`)"
    order = 200
    def __init__(self, ev, n=1, ex=KeyboardInterrupt, training=None): self.ev,self.left,self.ex,self.where = ev,n,ex,training
    def __call__(self, name):
        if name==self.ev and self.where in (None, self.training):
            self.left -= 1
            if self.left==0: raise self.ex
        return super().__call__(name)
