"Readers of published layouts against real annotation files, broken trees, and at size"
import json, os, subprocess, sys
import numpy as np, pandas as pd
from pathlib import Path
import pytest
from PIL import Image
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.cifar import read_cifar_10, read_cifar_100
from fgvc_fast.datasets.flowers import read_flowers
from fgvc_fast.datasets.food import read_food
from fgvc_fast.datasets.formats import read_cub
from fgvc_fast.datasets.inaturalist import read_inaturalist
from fgvc_fast.datasets.pets import pets_card, read_pets
from fgvc_fast.data.table import FineGrainedData

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

readers = dict(pets=read_pets, flowers=read_flowers, food=read_food, cifar_10=read_cifar_10, cifar_100=read_cifar_100, inaturalist=read_inaturalist)

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

def cifar_tree(root, n=20):
    "A CIFAR-10 of random pixels in the binary version, `n` pictures a batch"
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for f in [*(f'data_batch_{i}' for i in range(1,6)), 'test_batch']:
        x = rng.integers(0, 256, (n,3073), dtype=np.uint8)
        x[:,0] %= 10
        (root/f'{f}.bin').write_bytes(x.tobytes())
    (root/'batches.meta.txt').write_text('\n'.join(f'kind_{i}' for i in range(10)))

def test_cifar_killed_while_unpacking(tmp_path):
    "A kill leaves nothing that looks complete; the next run does it again, and sweeps up what is old"
    root = tmp_path/'cifar-10-batches-bin'
    cifar_tree(root)
    code = f"""
import json, os, subprocess, sys
import numpy as np, pandas as pd
from PIL import Image
from fgvc_fast.datasets.cifar import read_cifar_10
n,save = 0,Image.Image.save
def dying(self, *args, **kwargs):
    global n
    n += 1
    if n>70: os._exit(9)
    save(self, *args, **kwargs)
Image.Image.save = dying
read_cifar_10({str(root)!r})"""
    assert subprocess.run([sys.executable, '-c', code]).returncode==9
    left = [o for o in root.iterdir() if o.name.startswith('.png.part')]
    assert len(left)==1 and len(list(left[0].rglob('*.png')))==70 and not (root/'png').exists()
    os.utime(left[0], (0,0))
    data = read_cifar_10(root, valid=0)
    assert len(list((root/'png').rglob('*.png')))==120 and not left[0].exists()
    x = np.frombuffer((root/'data_batch_4.bin').read_bytes(), np.uint8).reshape(-1, 3073)[7,1:]
    assert (np.asarray(Image.open(data.path(67)))==x.reshape(3,32,32).transpose(1,2,0)).all()

def test_cifar_interrupted(tmp_path, monkeypatch):
    "Ctrl-C leaves no half-written folder"
    root = tmp_path/'cifar-10-batches-bin'
    cifar_tree(root)
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(Path, 'rename', stop)
    with pytest.raises(KeyboardInterrupt): read_cifar_10(root)
    assert sorted(o.name for o in root.iterdir() if o.is_dir())==[]

def test_cifar_two_at_once(tmp_path):
    "Two processes unpack at the same time: both read the same, one folder stays"
    root = tmp_path/'cifar-10-batches-bin'
    cifar_tree(root, 100)
    code = f"from fgvc_fast.datasets.cifar import read_cifar_10; d = read_cifar_10({str(root)!r}); assert all(d.path(i).is_file() for i in range(600))"
    procs = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(2)]
    assert [o.wait() for o in procs]==[0,0]
    assert [o.name for o in root.iterdir() if o.is_dir()]==['png']

def inat_json(fn, split, n, classes=10_000):
    "The JSON of iNaturalist 2021 at `n` pictures, written row by row as its owners' file looks"
    name = [f'{i:05d}_Animalia_Arthropoda_Insecta_Lepidoptera_Family{i//50}_Genus{i//5}_species{i}' for i in range(classes)]
    cats = [dict(id=i, name=f'Genus{i//5} species{i}', common_name=f'Moth {i}', supercategory='Insects', kingdom='Animalia', phylum='Arthropoda', order='Lepidoptera',
                 family=f'Family{i//50}', genus=f'Genus{i//5}', specific_epithet=f'species{i}', image_dir_name=name[i], **{'class':'Insecta'}) for i in range(classes)]
    with open(fn, 'w') as f:
        f.write('{"info": {"year": 2021}, "images": [')
        for i in range(n):
            f.write(', '*(i>0) + f'{{"id": {i}, "width": 500, "height": 375, "file_name": "{split}/{name[i*7%classes]}/{i:08x}-c1c0-d6ad-4d0a-9c4f2d2d8c1f.jpg", "license": 3, '
                    f'"rights_holder": "Some, Body: NaN", "date": "2018-07-01 00:00:00+00:00", "latitude": {i%90}.5, "longitude": {"NaN" if i%100==0 else -71.25}, "location_uncertainty": 77}}')
        f.write('], "categories": ' + json.dumps(cats) + ', "annotations": [')
        for i in range(n): f.write(', '*(i>0) + f'{{"id": {i}, "image_id": {i}, "category_id": {i*7%classes}}}')
        f.write('], "licenses": []}')

def test_inaturalist_streams(tmp_path):
    "200,000 rows, each way in a process of its own: the table takes less than half of what `json.load` takes for the same file"
    n = 200_000
    inat_json(tmp_path/'train.json', 'train', n-10_000)
    inat_json(tmp_path/'val.json', 'val', 10_000)
    begin = """
import json, os, resource, sys
from fgvc_fast.datasets.inaturalist import read_inaturalist
def peak(): # Linux hands ru_maxrss down from the process that started this one; VmHWM is our own
    if os.path.exists('/proc/self/status'): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])*1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform=='darwin' else 1024)
start = peak()
"""
    ours = f"""
data = read_inaturalist({str(tmp_path)!r})
print(json.dumps(dict(taken=peak()-start, rows=len(data), classes=len(data.vocab), split=data.items.split.value_counts().to_dict(),
    row=[str(data.items[c].iloc[12345]) for c in ('path','label','genus','family','longitude')])))"""
    plain = f"""
data = json.load(open({str(tmp_path/'train.json')!r}))
print(json.dumps(dict(taken=peak()-start)))"""
    def run(code):
        out = subprocess.run([sys.executable, '-c', begin+code], capture_output=True, text=True)
        assert out.returncode==0, out.stderr
        return json.loads(out.stdout)
    got = run(ours)
    k = 12345*7%10_000
    assert got['rows']==n and got['classes']==10_000 and got['split']==dict(train=170_000, valid=20_000, test=10_000)
    assert got['row']==[f'train/{k:05d}_Animalia_Arthropoda_Insecta_Lepidoptera_Family{k//50}_Genus{k//5}_species{k}/{12345:08x}-c1c0-d6ad-4d0a-9c4f2d2d8c1f.jpg', f'Genus{k//5} species{k}', f'Genus{k//5}', f'Family{k//50}', '-71.25']
    assert 100*n < got['taken'] # the paths alone take that: else this measures nothing
    assert got['taken'] < run(plain)['taken']/2

def test_attributes_stay_with_their_pictures(tmp_path):
    "Also when the data set is divided anew"
    data = FineGrainedData(pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(20)], label=['wren','robin']*10, id=range(100, 120))), tmp_path)
    data.attributes = pd.DataFrame(dict(red=range(20)), index=range(100, 120))
    new = data.split(valid=.2, seed=3)
    assert (new.attributes.loc[new.items.id].red.to_numpy()==new.items.id.to_numpy()-100).all()
