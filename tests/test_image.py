"Reading pictures: turned, broken and hostile files of every format, and pictures that are no files"
import io, os, socket, struct, warnings, zlib
import numpy as np, pandas as pd, pytest, torch
from PIL import Image, ImageOps, features
from fgvc_fast.all import FineGrainedData, FineGrainedError
from fgvc_fast.data.image import is_one_picture, picture_suffixes, raster_formats, read_image, to_picture, to_rgb, upright_box, upright_size
from fgvc_fast.data.lazy import LazyImage, open_lazily

kinds = dict(jpg='JPEG', png='PNG', webp='WEBP', gif='GIF', bmp='BMP', tif='TIFF', jp2='JPEG2000', avif='AVIF', ppm='PPM')
needs = dict(jp2='jpg_2000', webp='webp', avif='avif')
kinds = {k: v for k,v in kinds.items() if k not in needs or features.check(needs[k])}
exact = dict(WEBP=dict(lossless=True), AVIF=dict(quality=100), JPEG=dict(quality=98, subsampling=0))

def scene(w=48, h=32, seed=0):
    "A smooth picture in which no two corners are alike"
    x = np.random.default_rng(seed).integers(0, 256, (4,5,3), dtype=np.uint8)
    return Image.fromarray(x).resize((w,h), Image.Resampling.BICUBIC)

def stored(im, fmt, o=None, **kw):
    "The bytes of `im` as `fmt`, with EXIF orientation `o`"
    buf = io.BytesIO()
    if o is not None:
        kw['exif'] = Image.Exif()
        kw['exif'][0x0112] = o
    im.save(buf, fmt, **{**exact.get(fmt, {}), **kw})
    return buf.getvalue()

def apart(a, b):
    "The largest difference of any two numbers, for pictures, arrays and tensors"
    a,b = (np.asarray(o).astype(float) for o in (a, b))
    return np.abs(a-b).max() if a.shape==b.shape else np.inf

turn = {1: lambda x: x, 2: lambda x: x[:,::-1], 3: lambda x: x[::-1,::-1], 4: lambda x: x[::-1], 5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1,::-1].swapaxes(0, 1), 8: lambda x: np.rot90(x)} # by the EXIF standard, in NumPy

# Turned

@pytest.mark.parametrize('fmt', [o for o in ('JPEG','PNG','WEBP','TIFF','AVIF') if o in kinds.values()])
@pytest.mark.parametrize('o', range(1, 9))
def test_turned_once(fmt, o, tmp_path):
    "All of it, a region, another size, boxes and points: as NumPy turns the pixels that were stored"
    x = np.asarray(scene())
    fn = tmp_path/'a.pic'
    fn.write_bytes(stored(Image.fromarray(x), fmt, o))
    want,most = turn[o](x),14 if fmt=='AVIF' else 8
    h,w = want.shape[:2]
    im = read_image(fn)
    assert im.size==(w,h) and apart(im, want)<=most
    lazy = LazyImage(fn, (5,4,30,20))
    assert lazy.size==(w,h) and apart(lazy, want)<=most
    assert apart(read_image(fn, region=(3,2,25,22)), want[2:22,3:25])<=most
    small = np.asarray(Image.fromarray(np.ascontiguousarray(want)).resize((17,23), Image.Resampling.BILINEAR, box=(3,2,25,22)))
    assert apart(read_image(fn, (3,2,25,22), (17,23)), small)<=most
    assert apart(LazyImage(fn).region((3,2,25,22), (17,23)), small)<=most
    marked = np.zeros(x.shape[:2], bool)
    marked[4:20,5:30] = True
    ys,xs = np.nonzero(turn[o](marked))
    box = (xs.min(),ys.min(),xs.max()+1,ys.max()+1)
    assert lazy.box==box
    with Image.open(fn) as im: assert upright_box((5,4,30,20), im)==box and upright_size(im)==(w,h)
    (px,py), = lazy.upright(np.array([[11.5,7.5]]))
    assert apart(want[int(py),int(px)], x[7,11])==0
    for im in (Image.open(fn), ImageOps.exif_transpose(Image.open(fn))): assert apart(open_lazily(im), want)<=most # not twice

@pytest.mark.parametrize('way', ['exif','xmp','raw'])
def test_png_says_so_behind_its_pixels(way):
    "Pillow would decode to see it"
    def chunk(kind, b): return struct.pack('>I', len(b))+kind+b+struct.pack('>I', zlib.crc32(kind+b))
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    late = dict(exif=chunk(b'eXIf', raw[6:]), xmp=chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        raw=chunk(b'tEXt', b'Raw profile type exif\0\nexif\n%8d\n' % len(raw)+raw.hex().encode()))[way]
    x = np.asarray(scene())
    png = stored(Image.fromarray(x), 'PNG')
    at = png.rindex(b'IEND')-4
    b = io.BytesIO(png[:at]+late+png[at:])
    im = Image.open(b)
    loads = []
    im.load = lambda: loads.append(1)
    assert upright_size(im)==(32,48) and not loads
    assert apart(read_image(b), turn[6](x))==0

@pytest.mark.parametrize('fmt', ['PNG','JPEG','WEBP','TIFF'])
def test_size_without_pixels(fmt, tmp_path, monkeypatch):
    "Size, box and orientation are read from the head of a file: nobody decodes"
    from PIL import ImageFile
    fn = tmp_path/'a.pic'
    fn.write_bytes(stored(scene(), fmt))
    def load(self): raise AssertionError('decoded')
    monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
    assert LazyImage(fn, (1,2,3,4)).size==(48,32)

@pytest.mark.parametrize('fmt', ['PNG','JPEG','WEBP','TIFF'])
@pytest.mark.parametrize('exif', [b'Exif\0\0', b'Exif\0\0nonsense', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02A\0\0\0', b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0'])
def test_broken_exif_means_as_stored(fmt, exif, tmp_path):
    x = np.asarray(scene())
    if fmt=='TIFF': # its own tags are its EXIF: an orientation that is text
        from PIL.TiffImagePlugin import ImageFileDirectory_v2
        tags = ImageFileDirectory_v2()
        tags.tagtype[0x0112],tags[0x0112] = 2,exif.decode('latin1').replace('\0', '')
        b = stored(Image.fromarray(x), fmt, tiffinfo=tags)
    else: b = stored(Image.fromarray(x), fmt, exif=exif)
    fn = tmp_path/'a.pic'
    fn.write_bytes(b)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert apart(read_image(fn), x)<=8
        lazy = LazyImage(fn, (1,2,30,20))
        assert lazy.size==(48,32) and lazy.box==(1,2,30,20)
        assert apart(lazy.pixels((0,0,48,32), (48,32)).permute(1,2,0), x)<=8
        if fmt!='TIFF': assert apart(to_picture(Image.open(fn)), x)<=8
        data = FineGrainedData(pd.DataFrame(dict(path=['a.pic'], label='wren')), tmp_path, valid=0)
        assert not (data.check(progress=False).problem=='unreadable or truncated').any() and data.picture(0).size==(48,32)

# Broken

def damaged(fmt, n, seed=0):
    "`n` files of a picture as `fmt`, cut short or with some bits changed"
    rng = np.random.default_rng(seed)
    whole = stored(scene(), fmt, 6 if fmt in ('JPEG','PNG','WEBP','TIFF','AVIF') else None)
    for i in range(n):
        b = bytearray(whole)
        if i%3==0: b = b[:rng.integers(1, len(b))]
        else:
            for at in rng.integers(0, len(b) if i%3==1 else min(len(b), 80), rng.integers(1, 4)): b[at] ^= 1<<rng.integers(8)
        yield bytes(b)

@pytest.mark.parametrize('suffix', kinds)
def test_damaged_files(suffix, tmp_path):
    "Whatever is wrong with a file, there is a picture or one error that names it, by every way to it"
    fn,errors = tmp_path/f'wren.{suffix}',0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for b in damaged(kinds[suffix], 90):
            fn.write_bytes(b)
            for f in (lambda: read_image(fn), lambda: LazyImage(fn).pixels((0,0,20,20), (16,16)), lambda: LazyImage(fn, (1,2,9,9)).box,
                lambda: read_image(fn, (2,2,9,9), (4,4))):
                try: f()
                except FineGrainedError as e:
                    assert f'wren.{suffix}' in str(e) and e.why
                    errors += 1
            for o in (b, io.BytesIO(b)):
                try: assert to_picture(o).mode=='RGB'
                except FineGrainedError: pass
    assert errors>20

def test_damaged_files_by_every_caller(tmp_path):
    "`check`, `duplicates`, `show`, `picture`, the loaders with and without workers, and whoever builds a cache"
    rng = np.random.default_rng(0)
    good = [f'{i}.jpg' for i in range(8)]
    for i,o in enumerate(good): scene(seed=i).save(tmp_path/o)
    bad = []
    for suffix,fmt in kinds.items():
        whole = stored(scene(), fmt)
        (tmp_path/f'cut.{suffix}').write_bytes(whole[:len(whole)*2//3])
        (tmp_path/f'text.{suffix}').write_text('<html>404</html>')
        bad += [f'{o}.{suffix}' for o in ('cut','text')]
    (tmp_path/'folder.jpg').mkdir()
    bad.append('folder.jpg')
    data = FineGrainedData(pd.DataFrame(dict(path=good+bad, label='wren', split=['train']*6+['valid']*2+['train']*len(bad))), tmp_path)
    rows = range(len(good), len(data))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        report = data.check(progress=False)
        assert set(report.path[~report.usable])==set(bad)
        assert len(data.duplicates(progress=False).query('row_a>=8 or row_b>=8'))==0
        for i in rows:
            for f in (lambda: data.picture(i), lambda: data.show([i]), lambda: data.picture(i, (8,8))):
                with pytest.raises(FineGrainedError, match=data.items.path[i]): f()
    whole = data.drop(report)
    for i in rows[::4]:
        one = FineGrainedData(pd.concat([whole.items, data.items.loc[[i]].assign(split='valid')]), tmp_path)
        for kw in (dict(cache=False, num_workers=0), dict(cache=tmp_path/'cache', num_workers=0), dict(cache=False, num_workers=1)):
            dls = one.dls(16, bs=4, device='cpu', **kw)
            with pytest.raises(FineGrainedError, match=data.items.path[i]): list(dls.valid)

@pytest.mark.parametrize('kind', ['fifo','socket','device','folder','dangling','nothing'])
def test_no_files(kind, tmp_path, monkeypatch):
    "What is no file is not waited for"
    if os.name=='nt' and kind in ('fifo','socket','device'): pytest.skip('Windows has none in folders')
    fn = tmp_path/'0.jpg'
    if kind=='fifo': os.mkfifo(fn)
    if kind=='socket':
        monkeypatch.chdir(tmp_path) # its name may not be long
        s = socket.socket(socket.AF_UNIX)
        s.bind('0.jpg')
    if kind=='device': fn.symlink_to('/dev/zero')
    if kind=='folder': fn.mkdir()
    if kind=='dangling': fn.symlink_to('gone.jpg')
    for f in (lambda: read_image(fn), lambda: LazyImage(fn).size, lambda: LazyImage(fn).pixels((0,0,8,8), (8,8)), lambda: to_picture(str(fn))):
        with pytest.raises(FineGrainedError, match='0.jpg'): f()

def test_only_raster_formats(tmp_path):
    "An EPS starts Ghostscript, whatever its name"
    for o in ('EPS','PDF','PCX','ICO'):
        scene().save(tmp_path/'photo.jpg', o)
        with pytest.raises(FineGrainedError, match='photo.jpg is not a picture'): read_image(tmp_path/'photo.jpg')
    Image.init()
    for o in picture_suffixes: assert Image.EXTENSION.get(o, 'HEIF') in (*raster_formats,'HEIF','MPO')

def test_bombs(tmp_path):
    "A small file of a huge picture is refused by its head, a huge JPEG is read at the size that is needed"
    def chunk(kind, b): return struct.pack('>I', len(b))+kind+b+struct.pack('>I', zlib.crc32(kind+b))
    fn = tmp_path/'bomb.png'
    fn.write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 12000, 12000, 8, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(b'\0'*10_000))+chunk(b'IEND', b''))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # Pillow's own
        with pytest.raises(FineGrainedError, match='bomb.png is too large .12000 × 12000'): read_image(fn)
        Image.new('L', (13000,11000)).save(tmp_path/'large.jpg')
        assert read_image(tmp_path/'large.jpg', size=(50,40)).size==(50,40)

def test_names_that_are_no_text(tmp_path):
    "A name from an old zip, in bytes that are no UTF-8: read, and told in an error"
    fn = os.fsdecode(os.fsencode(tmp_path)+b'/caf\xe9.jpg')
    scene().save(fn, 'JPEG')
    assert read_image(fn).size==LazyImage(fn).size==(48,32)
    os.truncate(fn, 300)
    with pytest.raises(FineGrainedError, match=r'caf\\udce9.jpg') as e: read_image(fn)
    str(e.value).encode()

# Scales

def test_scales():
    "Each depth against the formula by hand"
    rng = np.random.default_rng(0)
    def grey(im): return np.asarray(to_rgb(im))[...,0]
    x = rng.integers(0, 65536, (9,7)).astype(np.uint16)
    want = np.round(x/257)
    for mode,dtype in (('I;16','<u2'), ('I;16B','>u2')): assert apart(grey(Image.frombytes(mode, (7,9), x.astype(dtype).tobytes())), want)==0
    assert apart(grey(Image.fromarray(x.astype(np.int32))), want)==0
    f = rng.random((9,7)).astype(np.float32)
    assert apart(grey(Image.fromarray(f)), np.round(f*255))==0
    assert apart(grey(Image.fromarray(f*200)), np.round(f*200))==0
    for v,want in ((0.,0), (.5,128), (1.,255), (77.,77)): assert (grey(Image.fromarray(np.full((4,4), v, np.float32)))==want).all()
    assert set(np.unique(grey(Image.fromarray(x>30000))))=={0,255}

@pytest.mark.parametrize('bad,want', [(np.nan,0), (np.inf,255), (-np.inf,0)])
@pytest.mark.parametrize('scale', [1, 200])
def test_one_pixel_that_is_no_number(bad, want, scale, tmp_path):
    "It spoils itself, and nothing else"
    f = np.linspace(0, scale, 63, dtype=np.float32).reshape(9, 7)
    clean = np.asarray(to_rgb(Image.fromarray(f)))[...,0]
    f[4,3] = bad
    Image.fromarray(f).save(tmp_path/'a.tif')
    got = np.asarray(read_image(tmp_path/'a.tif'))[...,0]
    rest = np.ones(f.shape, bool)
    rest[4,3] = False
    assert apart(got[rest], clean[rest])<=1 and abs(int(got[4,3])-min(want, clean.max()))<=1
    Image.fromarray(f*np.float32(np.nan)).save(tmp_path/'a.tif')
    with pytest.raises(FineGrainedError, match='a.tif is no picture as it stands .no pixel is a finite number'): read_image(tmp_path/'a.tif')

@pytest.mark.parametrize('scale', [1, 255])
def test_files_have_the_scale_of_arrays(scale, tmp_path):
    "A pixel a little over or under changes no other; one that leaves the scale unknown is an error that names the file"
    f = np.linspace(0, .9, 63, dtype=np.float32).reshape(9, 7)*np.float32(scale)
    want = np.round(f/scale*255)
    def rewritten(o):
        g = f.copy()
        g[4,3] = o*scale
        Image.fromarray(g).save(tmp_path/'a.tif')
        res = np.asarray(read_image(tmp_path/'a.tif'))[...,0].astype(int)
        assert (np.asarray(to_picture(g))[...,0]==res).all()
        res[4,3] = want[4,3]
        return res
    for o in (-1e-6, -1/255, -.09, 1.004, 1.09): assert apart(rewritten(o), want)<=1, o
    for o in (-.2, 1.2, 5):
        with pytest.raises(FineGrainedError, match='a.tif is no picture as it stands .values from .*: rewrite it'): rewritten(o)

@pytest.mark.parametrize('x', [np.arange(16)*900.-50, np.arange(16)*9_000-70_000, np.arange(16)*66_000], ids=['elevation','under 0','over 16 bits'])
def test_numbers_of_no_known_scale(x, tmp_path):
    "Two pictures would be shown on two scales"
    Image.fromarray(x.reshape(4,4).astype(np.float32 if x.dtype.kind=='f' else np.int32)).save(tmp_path/'a.tif')
    with pytest.raises(FineGrainedError, match='a.tif is no picture as it stands .values from'): read_image(tmp_path/'a.tif')

@pytest.mark.parametrize('hot', [20., 200.])
def test_a_hot_pixel(hot, tmp_path):
    "One value far above a scale of 0 to 1 would turn the rest black"
    x = np.random.default_rng(0).random((20,20)).astype(np.float32)
    x[3,4] = hot
    Image.fromarray(x).save(tmp_path/'a.tif')
    with pytest.raises(FineGrainedError, match='a.tif is no picture as it stands .nearly all values lie between 0 and 1, and 1 reach'): read_image(tmp_path/'a.tif')
    assert np.asarray(to_picture(np.where(x>1, hot, 0.).astype(np.float32)))[3,4].tolist()==[hot]*3, 'a star in the night'

@pytest.mark.parametrize('mode', 'RGB RGBA L LA La RGBa P PA 1 CMYK YCbCr HSV LAB I F I;16 I;16B I;16L I;16N RGBX'.split())
def test_every_mode(mode):
    im = to_picture(Image.new(mode, (5,4)))
    assert im.mode=='RGB' and im.size==(5,4)

def test_transparent_is_white():
    grey = Image.new('P', (4,4), 3)
    grey.putpalette([0,0,0]*256)
    grey.info['transparency'] = 3
    for im in (grey, Image.new('LA', (4,4), (0,0)), Image.new('RGBA', (4,4), (9,9,9,0)), Image.new('La', (4,4)), Image.new('RGBa', (4,4))):
        assert (np.asarray(to_rgb(im))==255).all()

# No files

x = np.array(scene())
pixels = {'uint8': x, 'float': x/255, 'float32': (x/255).astype(np.float32), 'bytes as float': x.astype(float), 'int64': x.astype(np.int64), 'uint16': x.astype(np.uint16)*257, 'chw': x.transpose(2,0,1), 'batch of one': x[None],
    'rgba': np.dstack([x, np.full(x.shape[:2], 255, np.uint8)]), 'swapped bytes': (x.astype(np.uint16)*257).astype('>u2'), 'view': np.flip(np.flip(x, 0).copy(), 0),
    'tensor': torch.from_numpy(x).permute(2,0,1), 'tensor hwc': torch.from_numpy(x),
    'float tensor': torch.from_numpy(x).permute(2,0,1)/255, 'batch tensor': (torch.from_numpy(x).permute(2,0,1)/255)[None], 'grad': (torch.from_numpy(x).permute(2,0,1)/255).requires_grad_(),
    'picture': Image.fromarray(x), 'png': stored(Image.fromarray(x), 'PNG'),
    'bytearray': bytearray(stored(Image.fromarray(x), 'PNG')), 'open file': io.BytesIO(stored(Image.fromarray(x), 'PNG')), 'just over': x/255*1.0000005}

@pytest.mark.parametrize('kind', pixels)
def test_pixels_are_pictures(kind):
    assert apart(to_picture(pixels[kind]), x)==0
    assert apart(open_lazily(pixels[kind]), x)==0 and is_one_picture(pixels[kind])==(kind not in ('batch of one','batch tensor'))

@pytest.mark.parametrize('grey', [x[...,0], x[...,:1], x[None,...,0], x[...,0]/255, torch.from_numpy(x[...,0].copy()), torch.from_numpy(x[...,0].copy())[None],
    torch.from_numpy(x[...,0].copy())[None,None]/255, x[...,0].astype(np.uint16)*257])
def test_grey(grey): assert apart(to_picture(grey), np.repeat(x[...,:1], 3, 2))==0

@pytest.mark.parametrize('over', [1.0009, 1.002, 1.02, 1.09])
def test_a_little_over_one(over):
    y = x/x.max()*over
    want = np.round(y*255).clip(0, 255)
    for o in (y, y.astype(np.float32), torch.from_numpy(y).permute(2,0,1)): assert apart(to_picture(o), want)<=1
    f = (y[...,0]/y[...,0].max()*over).astype(np.float32)
    assert apart(np.asarray(to_picture(Image.fromarray(f)))[...,0], np.round(f*255).clip(0, 255))<=1

def test_whole_numbers_by_their_type():
    y = np.arange(200).reshape(10, 20)
    for t in 'u1 i2 i4 i8 u4 u8'.split(): assert (np.asarray(to_picture(y.astype(t)))[...,0]==y).all(), t
    assert (np.asarray(to_picture(y.astype('u2')))[...,0]==np.round(y/257)).all()

def test_half_precision():
    t = torch.from_numpy(x).permute(2,0,1)/255
    for o in (t.half(), t.bfloat16()): assert apart(to_picture(o), x)<=1
    assert apart(to_picture(x>127), (x>127)*255)==0

wrong = [None, b'', b'no picture', [], [1,2], {}, 5, 2.5, object(), np.array('a'), np.array(3), np.zeros(7), np.zeros((0,4,3)), np.zeros((4,0)), np.zeros((8,8,2)),
    np.zeros((8,8,7)), np.zeros((2,4,4,3)), np.zeros((4,4,3), complex),
    np.zeros((4,4,3), object), np.zeros((4,4,3), 'M8[s]'), np.full((4,4,3), np.nan), np.full((4,4), np.inf), np.full((4,4,3), -1), np.full((4,4,3), 1e300),
    np.full((4,4,3), 70_000), x/255-.5, torch.randn(3,8,8), np.linspace(0, 1.2, 48).reshape(4,4,3), np.linspace(0, 15, 48).reshape(4,4,3),
    (torch.rand(3,16,16)*.3+.2)/.225, torch.zeros(0), torch.zeros(5,8,8), torch.zeros(3,4,4).to_sparse(), '/no/such.jpg', 'a\0b.jpg', 'x'*5000]

@pytest.mark.parametrize('i', range(len(wrong)))
def test_no_pictures(i):
    with pytest.raises(FineGrainedError): to_picture(wrong[i])
    with pytest.raises(FineGrainedError): np.asarray(open_lazily(wrong[i]))

def test_the_users_picture_stays_as_it_is():
    im = Image.fromarray(x)
    out = open_lazily(im)
    out.putpixel((0,0), (1,2,3))
    assert type(im) is Image.Image and apart(im, x)==0
