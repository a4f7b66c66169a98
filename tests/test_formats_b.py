"Readers of published layouts against real annotation files, broken trees, and at size"
import os
from pathlib import Path
import pytest
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.flowers import read_flowers
from fgvc_fast.data.food import read_food
from fgvc_fast.data.formats import read_cub
from fgvc_fast.data.pets import pets_card, read_pets

shared = Path(os.environ.get('FGVC_SHARED', '../shared'))/'annotations'

def needs(name): return pytest.mark.skipif(not (shared/name).is_dir(), reason=f'{shared/name} is not here (set FGVC_SHARED)')

@needs('CUB_200_2011')
def test_real_cub():
    "All 11,788 rows, with parts, meet the published counts; files agree with each other"
    data = read_cub(shared/'CUB_200_2011')
    n,it = data.card['counts'],data.items
    assert (len(data.vocab), (it.split!='test').sum(), (it.split=='test').sum())==(n['classes'], n['train'], n['test'])==(200, 5994, 5794)
    assert it.label.nunique()==200 and len(data.parts)==11788*15 and data.parts.part.nunique()==15
    folder = it.path.str.split('/').str[1].str[4:].str.replace('_', ' ')
    assert (folder==it.label.astype(str)).all()
    first = (shared/'CUB_200_2011'/'bounding_boxes.txt').read_text().splitlines()[0].split()
    i,x,y,w,h = map(float, first)
    assert it.set_index('id').loc[i, ['x0','y0','x1','y1']].tolist()==[x, y, x+w, y+h]
    seen = data.parts[data.parts.visible==1].merge(it[['x0','y0','x1','y1']], left_on='item', right_index=True)
    assert (seen.x.between(seen.x0-2, seen.x1+2) & seen.y.between(seen.y0-2, seen.y1+2)).mean()>.98 # parts lie in the boxes of their own pictures

@needs('Pets-3breeds')
def test_real_pets():
    "Three breeds of the real files: lists, boxes, which pictures have none"
    folder = shared/'Pets-3breeds'
    data = read_pets(folder)
    it = data.items
    assert data.vocab==['Abyssinian','american bulldog','Bengal'] and data.card==pets_card
    assert it.split.value_counts().to_dict()['test']==298 and (it.split!='test').sum()==300
    assert it.groupby('label', observed=True).species.unique().str[0].tolist()==['cat','dog','cat']
    xmls = {o.stem for o in (folder/'xmls').glob('*.xml')}
    assert {Path(o).stem for o in it.path[it.x0.notna()]}==xmls and len(xmls)==296
    row = it.set_index('path').loc['images/Abyssinian_1.jpg'] # 333, 72, 425, 158 in a picture of 600×400
    assert row[['x0','y0','x1','y1']].tolist()==[332, 71, 425, 158]
    assert it.x0.min()>=0 and it.y0.min()>=0
    assert (data.check(progress=False).problem=='missing file').sum()==598 # the pictures are not here, and reading did not need them

readers = dict(pets=read_pets, flowers=read_flowers, food=read_food)

@pytest.mark.parametrize('name', readers)
@pytest.mark.parametrize('tree', ['gone', 'empty', 'other'])
def test_not_the_tree(name, tree, tmp_path):
    "No folder, an empty one, or another data set: one error that shows the layout"
    if tree!='gone': (tmp_path/tree).mkdir()
    if tree=='other':
        (tmp_path/tree/'images.txt').write_text('1 001.Wren/a.jpg\n')
        (tmp_path/tree/'images').mkdir()
    msg = 'There is no folder' if tree=='gone' else rf'is not a tree of (.|\n)*found {"nothing" if tree=="empty" else "images, images.txt"}(.|\n)*look like this'
    with pytest.raises(FineGrainedError, match=msg): readers[name](tmp_path/tree)
