"Published trees with a file that somebody cut, saved in another way or mixed up: one error that names it, or the data set as it was"
import numpy as np, pandas as pd, pytest, warnings
import published_trees as trees
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import (read_aircraft, read_cars, read_cifar_100, read_cub, read_dogs, read_flowers, read_food, read_inaturalist,
    read_nabirds, read_pets)

models,breeds = ['AM General Hummer SUV 2000','Audi S4 Sedan 2012'],['n02085620-Chihuahua','n02089078-black-and-tan_coonhound']
sets = dict(cub=read_cub, nabirds=read_nabirds, aircraft=read_aircraft, cars=(read_cars, models), dogs=(read_dogs, breeds), pets=read_pets,
    flowers=read_flowers, food=read_food, cifar_100=read_cifar_100, inaturalist=read_inaturalist)

def made(name, root):
    "The reader of the data set `name`, whose tree is made in `root`"
    read,*args = sets[name] if isinstance(sets[name], tuple) else (sets[name],)
    getattr(trees, name)(root, *args)
    return read

def files(root): return sorted(o for o in root.rglob('*') if o.is_file() and 'png' not in o.parts and o.suffix!='.png')

harmless = dict(bom=lambda b: b'\xef\xbb\xbf'+b, crlf=lambda b: b.replace(b'\n', b'\r\n'), blanks=lambda b: b.replace(b'\n', b'  \n'), no_end=lambda b: b.rstrip(b'\n'),
    empty_lines=lambda b: b.replace(b'\n', b'\n\n'), tabs=lambda b: b.replace(b' ', b'\t'))

@pytest.mark.parametrize('name,how', [(n,h) for n in ('cub','nabirds','aircraft','pets','food','cifar_100') for h in harmless if h!='tabs' or n in ('cub','pets')]) # names with blanks in the others
def test_written_otherwise(name, how, tmp_path):
    "Marks, line ends and blanks that editors add change nothing"
    read = made(name, tmp_path/name)
    want = read(tmp_path/name)
    for fn in files(tmp_path/name):
        if fn.suffix=='.txt': fn.write_bytes(harmless[how](fn.read_bytes()))
    got = read(tmp_path/name)
    pd.testing.assert_frame_equal(got.items, want.items)
    if want.parts is not None: pd.testing.assert_frame_equal(got.parts, want.parts)

def cut(b, rng): return b[:rng.integers(0, len(b))]
def flip(b, rng):
    x = np.frombuffer(b, np.uint8).copy()
    x[rng.integers(0, len(x), 4)] ^= rng.integers(1, 256, 4).astype(np.uint8)
    return x.tobytes()
def word(b, rng):
    "One value becomes another"
    w = b.split(b' ')
    w[rng.integers(0, len(w))] = [b'-1', b'999999', b'nan', b'inf', b'x', b'1.5', b'0,', b'', b'1e300', b'\xff\xfe'][rng.integers(0, 10)]
    return b' '.join(w)
def line(b, rng):
    "A line goes, comes twice, or changes places with another"
    l = b.split(b'\n')
    i,j = rng.integers(0, len(l), 2)
    k = rng.integers(0, 3)
    if k==0: del l[i]
    elif k==1: l.insert(i, l[j])
    else: l[i],l[j] = l[j],l[i]
    return b'\n'.join(l)
def other(b, rng): return [b'', b'\n', b'\x00'*50, b'<html>404</html>', b'1,2,3\n', b.decode('latin-1').encode('utf-16'), b'{}', b'[]', b'null', b'MATLAB 5.0 MAT-file'+b'\x00'*200][rng.integers(0, 10)]

@pytest.mark.parametrize('name', sets)
def test_damaged(name, tmp_path):
    "Whatever is damaged: a table, or one error that says which tree and what"
    read,refused = made(name, tmp_path/name),0
    whole = {o: o.read_bytes() for o in files(tmp_path/name)}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        fn = list(whole)[rng.integers(0, len(whole))]
        how = [cut, flip, word, line, other][seed%5]
        if how is flip and fn.suffix=='.mat': continue # scipy itself may take a minute over it
        b = how(whole[fn], rng)
        fn.write_bytes(b)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                data = read(tmp_path/name, **(dict(pictures=tmp_path/f'png{seed}') if name=='cifar_100' else {}))
            assert len(data) and data.items.path.notna().all()
        except FineGrainedError as e:
            assert str(tmp_path) in str(e), (fn.name, str(e))
            refused += 1
        except Exception as e: raise AssertionError(f'{name}, seed {seed}, {fn.name}: {type(e).__name__} {e}\n{b[:300]}') from e
        fn.write_bytes(whole[fn])
    assert refused>5

def test_two_species_of_one_name(tmp_path):
    "A number is left out of a name only where the name is one without it"
    made('cub', tmp_path/'cub')
    for classes in (True,False):
        data = read_cub(tmp_path/'cub', valid=0)
        assert data.vocab==['001.Common Wren','Kea','103.Common Wren']
        assert (data.items.path.str.split('/').str[1].map({'001.Common_Wren':'001.Common Wren', '002.Kea':'Kea', '103.Common_Wren':'103.Common Wren'})==data.items.label.astype(str)).all()
        (tmp_path/'cub'/'classes.txt').unlink(missing_ok=True)

@pytest.mark.parametrize('text,why', [('0, 001.Common_Wren/0.jpg\n', "images.txt, line 1: id '0,' is no whole number"), ('1.5 a/b.jpg\n', "line 1: id '1.5'"), ('1 a/0.jpg\n1 a/1.jpg\n', 'image 1 stands there twice'), ('', 'images.txt is empty'), ('1 a/0.jpg\n\n2\n', 'line 3: expected 2 values')])
def test_lists_of_cub(text, why, tmp_path):
    made('cub', tmp_path/'cub')
    (tmp_path/'cub'/'images.txt').write_text(text)
    with pytest.raises(FineGrainedError, match=why): read_cub(tmp_path/'cub')
    (tmp_path/'cub'/'images.txt').write_bytes(b'\xff\xfe1\x00')
    with pytest.raises(FineGrainedError, match='images.txt is not a text file in UTF-8'): read_cub(tmp_path/'cub')

@pytest.mark.parametrize('name,fn', [('food','classes.txt'), ('food','labels.txt'), ('cifar_100','fine_label_names.txt'), ('aircraft','variants.txt')])
def test_a_name_twice(name, fn, tmp_path):
    read = made(name, tmp_path/name)
    fn = next((tmp_path/name).rglob(fn))
    fn.write_text((fn.read_text().splitlines()[0]+'\n')*len(fn.read_text().splitlines()))
    with pytest.raises(FineGrainedError, match='stands there twice|is not in|has no line'): read(tmp_path/name)
