"Downloads that break off, change, lie; archives that climb out; processes that are killed: nothing half-done looks done"
import bz2, errno, gzip, hashlib, io, lzma, os, re, shutil, signal, stat, subprocess, sys, tarfile, threading, time, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np, pytest
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets import download
from fgvc_fast.datasets.download import fetch, unpack

body = os.urandom(3<<20)
md5 = 'md5:'+hashlib.md5(body).hexdigest()

class Server(ThreadingHTTPServer):
    "Serves `body`; breaks off after `drops.pop()` bytes of an answer; `ranges`: resumes; `tag` marks the file"
    daemon_threads = True
    def __init__(self):
        super().__init__(('localhost', 0), Handler)
        self.body,self.drops,self.ranges,self.tag,self.asked,self.slow = body,[],True,'"one"',[],0
        self.url = f'http://localhost:{self.server_port}/birds.tgz'
        threading.Thread(target=self.serve_forever, daemon=True).start()

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        s = self.server
        asked = re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')
        begin = int(asked[1]) if asked and s.ranges and self.headers.get('If-Range')==s.tag else 0
        s.asked.append(begin)
        if begin>=len(s.body): return self.send_error(416)
        self.send_response(206 if begin else 200)
        if s.tag: self.send_header('ETag', s.tag)
        if begin: self.send_header('Content-Range', f'bytes {begin}-{len(s.body)-1}/{len(s.body)}')
        self.send_header('Content-Length', len(s.body)-begin)
        self.end_headers()
        out = s.body[begin:]
        if s.drops: out = out[:s.drops.pop(0)]
        for i in range(0, len(out), 1<<16):
            self.wfile.write(out[i:i+(1<<16)])
            time.sleep(s.slow)
        if len(out)<len(s.body)-begin: self.connection.close()

@pytest.fixture(autouse=True)
def impatient(monkeypatch): monkeypatch.setattr(download, '_pause', .01)

@pytest.fixture
def server():
    s = Server()
    yield s
    s.shutdown()

def names(folder): return sorted(o.name for o in folder.iterdir() if not o.name.endswith('.lock'))

def test_goes_on_where_it_broke_off(server, tmp_path):
    server.drops = [1<<20, 1<<20]
    assert fetch(server.url, tmp_path, md5).read_bytes()==body
    assert server.asked[0]==0 and len(server.asked)==3 and 0<server.asked[1]<server.asked[2]<len(body)
    assert names(tmp_path)==['birds.tgz']
    fetch(server.url, tmp_path, md5)
    assert len(server.asked)==3 # what is there is not fetched again

def test_says_so_and_goes_on_next_time(server, tmp_path):
    server.drops = [1<<20, 0, 0, 0]
    with pytest.raises(FineGrainedError, match='1,048,576 bytes have arrived.*goes on from there'): fetch(server.url, tmp_path, md5)
    assert not (tmp_path/'birds.tgz').exists()
    assert fetch(server.url, tmp_path, md5).read_bytes()==body
    assert server.asked[-1]==1<<20

def test_server_that_cannot_resume(server, tmp_path):
    server.drops,server.ranges = [1<<20],False
    assert fetch(server.url, tmp_path, md5).read_bytes()==body
    assert server.asked==[0,0]

@pytest.mark.parametrize('tag', ['"two"', None, 'W/"weak"'])
def test_another_file_meanwhile(server, tmp_path, tag):
    "Nothing is sewn together from two files"
    server.drops = [1<<20, 0, 0, 0]
    with pytest.raises(FineGrainedError): fetch(server.url, tmp_path, md5)
    server.body,server.tag = os.urandom(2<<20),tag
    new = 'md5:'+hashlib.md5(server.body).hexdigest()
    assert fetch(server.url, tmp_path, new).read_bytes()==server.body

def test_last_byte_then_killed(server, tmp_path):
    "All had arrived before the end could be noted: the server has no more, and the sum decides"
    (tmp_path/'.birds.tgz.part').write_bytes(body)
    (tmp_path/'.birds.tgz.mark').write_text(server.tag)
    assert fetch(server.url, tmp_path, md5).read_bytes()==body

def test_no_advice_about_checksums(server, tmp_path):
    import logging, pooch
    logger,said = pooch.get_logger(),[]
    class Keep(logging.Handler):
        def emit(self, record): said.append(record.getMessage())
    keep,was = Keep(),[*logger.filters]
    logger.addHandler(keep)
    try: fetch(server.url, tmp_path, None)
    finally: logger.removeHandler(keep)
    assert any('Downloading' in o for o in said) and not any('known_hash' in o for o in said) and logger.filters==was

def test_wrong_checksum(server, tmp_path):
    with pytest.raises(FineGrainedError, match='not the file that was published'): fetch(server.url, tmp_path, 'md5:'+'0'*32)
    assert names(tmp_path)==[]

def test_killed_while_fetching(server, tmp_path):
    server.slow = .05
    code = f"from fgvc_fast.datasets.download import fetch; fetch({server.url!r}, {str(tmp_path)!r}, {md5!r})"
    p = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    part = tmp_path/'.birds.tgz.part'
    for _ in range(9000):
        if part.exists() and part.stat().st_size >= 1<<20: break
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'birds.tgz').exists() and part.stat().st_size >= 1<<20
    server.slow = 0
    assert fetch(server.url, tmp_path, md5).read_bytes()==body
    assert server.asked[-1]>=1<<20

def test_two_at_once(server, tmp_path):
    server.slow,got = .01,[]
    ts = [threading.Thread(target=lambda: got.append(fetch(server.url, tmp_path, md5).read_bytes()==body)) for _ in range(2)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert got==[True,True] and server.asked==[0]

# Lines and servers that do not do as they should

def raw(answer):
    "The url of a server that gives `answer(request's text, number of the connection)`: bytes at once, or a list of bytes and seconds to wait; and what it was asked"
    import socket
    sock,asked = socket.create_server(('localhost', 0)),[]
    def serve(c, n):
        try:
            req = b''
            while b'\r\n\r\n' not in req:
                if not (more := c.recv(4096)): return
                req += more
            asked.append(req.decode('latin-1'))
            out = answer(req.decode('latin-1'), n)
            for o in [out] if isinstance(out, bytes) else out:
                if isinstance(o, bytes): c.sendall(o)
                else: time.sleep(o)
        except OSError: pass
        finally: c.close()
    def loop():
        n = 0
        while True:
            try: c,_ = sock.accept()
            except OSError: return
            threading.Thread(target=serve, args=(c,n), daemon=True).start()
            n += 1
    threading.Thread(target=loop, daemon=True).start()
    raw.open.append(sock)
    return f'http://localhost:{sock.getsockname()[1]}/birds.tgz',asked

raw.open = []

@pytest.fixture(autouse=True, scope='module')
def close_all():
    yield
    for o in raw.open: o.close()

def head(status, **kwargs): return (f'HTTP/1.1 {status}\r\n' + ''.join(f"{k.replace('_','-')}: {v}\r\n" for k,v in kwargs.items()) + 'Connection: close\r\n\r\n').encode()

@pytest.mark.parametrize('every', [1, 700, 70_000])
def test_progress_at_any_byte(tmp_path, every):
    "A line that breaks after so many bytes each time ends with the whole file, each byte asked for once"
    want = body[:12*every]
    def answer(req, n):
        at = int(m[1]) if (m := re.search(r'Range: bytes=(\d+)-', req)) else 0
        more = dict(Content_Range=f'bytes {at}-{len(want)-1}/{len(want)}') if at else {}
        return head('206 Partial' if at else '200 OK', ETag='"x"', Content_Length=len(want)-at, **more) + want[at:at+every]
    url,asked = raw(answer)
    assert fetch(url, tmp_path, 'md5:'+hashlib.md5(want).hexdigest()).read_bytes()==want
    assert len(asked)==12 and names(tmp_path)==['birds.tgz']

@pytest.mark.parametrize('to', ['file:///etc/passwd', 'ftp://localhost/x', 'gopher://x/y', 'data:text/plain,x', 'http://[::1', 'http://a..b/x', 'javascript:x'])
def test_redirect_to_what_is_no_web(tmp_path, to):
    url,asked = raw(lambda *_: head('302 Found', Location=to))
    with pytest.raises(FineGrainedError) as e: fetch(url, tmp_path, md5)
    assert to in str(e.value) and 'checksum' not in str(e.value) and len(asked)==1 and names(tmp_path)==[]

def test_redirects_that_end_and_that_do_not(server, tmp_path):
    url,asked = raw(lambda *_: head('301 Moved', Location='/round/again.tgz'))
    with pytest.raises(FineGrainedError, match='from one address to the next.*again.tgz'): fetch(url, tmp_path, md5)
    assert len(asked)==10
    url,_ = raw(lambda *_: head('307 Moved', Location=server.url))
    server.drops = [1<<20]
    assert fetch(url, tmp_path, md5).read_bytes()==body

@pytest.mark.parametrize('url', ['file:///etc/passwd', '/etc/passwd', 'birds.tgz', 'http:///x.tgz', 'http://localhost/', 'http://localhost', 'http://localhost/a/%2e%2e', 'http://localhost/..%5cevil', '', None, 5, b'http://x/y', 'http://[/x'])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(FineGrainedError, match='no address on the web|names no file'): fetch(url, tmp_path, md5)

def test_name_stays_in_its_folder(server, tmp_path):
    "An escaped slash is one"
    assert fetch(server.url.replace('birds.tgz', '..%2f..%2fevil.tgz'), tmp_path/'in', md5)==tmp_path/'in'/'evil.tgz'

@pytest.mark.parametrize('kwargs,said', [(dict(known_hash='crc:12'), 'known_hash='), (dict(known_hash='0'*32), 'known_hash='), (dict(known_hash=5), 'known_hash='), (dict(known_hash='md5:xyz'), 'known_hash='),
    (dict(tries=0), 'tries=0'), (dict(tries='3'), 'tries='), (dict(folder=None), 'folder=None'), (dict(folder=__file__), 'is a file')], ids=str)
def test_arguments_of_fetch(server, tmp_path, kwargs, said):
    with pytest.raises(FineGrainedError, match=said): fetch(**dict(url=server.url, folder=tmp_path, known_hash=md5) | kwargs)
    assert server.asked==[]

answers = {'not found': (head('404 Not Found'), 'answers 404 Not Found', 1), 'forbidden': (head('403 Forbidden'), 'answers 403', 1), 'no content': (head('204 No Content'), 'answers 204', 1),
    'unasked part': (head('206 Partial', Content_Length=3, Content_Range='bytes 5-7/9')+b'abc', 'answers 206', 1), 'server error': (head('500 Oops'), 'it answers 500 Oops', 3), 'busy': (head('503 Busy'), 'it answers 503', 3),
    'too many': (head('429 Slowly'), 'it answers 429', 3), 'empty': (head('200 OK', Content_Length=0), 'empty file', 1), 'empty, no length': (head('200 OK'), 'empty file', 1), 'bad gzip': (head('200 OK', Content_Encoding='gzip')+b'no gzip', 'not packed as its server says', 1),
    'no http': (b'SSH-2.0-OpenSSH\r\n', 'cannot be reached, or broke off', 3), 'nothing': (b'', 'cannot be reached, or broke off', 3), 'half a head': (b'HTTP/1.1 200 OK\r\nConte', 'cannot be reached, or broke off|empty file', None),
    'endless head': (b'HTTP/1.1 200 OK\r\n'+b'X: y\r\n'*1000, 'cannot be reached, or broke off', 3), 'bad chunk': (head('200 OK', Transfer_Encoding='chunked')+b'zz\r\nabc', 'cannot be reached, or broke off', 3),
    'half a chunk': (head('200 OK', Transfer_Encoding='chunked')+b'9\r\nabc', 'cannot be reached, or broke off', 3), 'long': (head('200 OK', Content_Length=9)+b'abc', 'bytes are missing|broke off', 3), 'short': (head('200 OK', Content_Length=2)+b'abc', 'not the file that was published', 1),
    'length no number': (head('200 OK', Content_Length='x')+b'abc', 'not the file that was published', 1), 'length below nothing': (head('200 OK', Content_Length='-5')+b'abc', 'not the file that was published', 1),
    'a petabyte': (head('200 OK', Content_Length=10**15)+b'abc', 'make room', 1), 'length of a thousand digits': (head('200 OK', Content_Length='9'*1000)+b'abc', '.', None)}

@pytest.mark.parametrize('answer,said,times', answers.values(), ids=answers)
def test_servers_that_misbehave(tmp_path, answer, said, times):
    url,asked = raw(lambda *_: answer)
    with pytest.raises(FineGrainedError, match=said) as e: fetch(url, tmp_path, md5)
    assert url in str(e.value) and (times is None or len(asked)==times) and not (tmp_path/'birds.tgz').exists()

def test_server_that_recovers(tmp_path):
    "Twice 503, then the file"
    url,asked = raw(lambda req, n: head('503 Busy') if n<2 else head('200 OK', Content_Length=len(body))+body)
    assert fetch(url, tmp_path, md5).read_bytes()==body and len(asked)==3

def test_goes_on_with_other_bytes(tmp_path):
    "An answer that begins elsewhere than asked, and a 416 of a file of another length: begun anew, nothing sewn together"
    for wrong in (head('206 Partial', Content_Length=10, Content_Range=f'bytes 0-9/{len(body)}')+body[:10], head('206 Partial', Content_Length=10)+body[:10], head('416 No', Content_Range='bytes */7')):
        (tmp_path/'.birds.tgz.part').write_bytes(body[:1000])
        (tmp_path/'.birds.tgz.mark').write_text('"x"')
        url,asked = raw(lambda req, n: wrong if 'Range: bytes=1000-' in req else head('200 OK', Content_Length=len(body))+body)
        assert fetch(url, tmp_path, md5).read_bytes()==body and len(asked)==2
        (tmp_path/'birds.tgz').unlink()

@pytest.mark.parametrize('mark', [b'', b'x', b'"a"\r\nX: y', b'\xff\xfe', b'W/"x"'])
def test_mark_that_is_none(server, tmp_path, mark):
    "What else lies there is not sent to a server"
    (tmp_path/'.birds.tgz.part').write_bytes(b'z'*1000)
    (tmp_path/'.birds.tgz.mark').write_bytes(mark)
    assert fetch(server.url, tmp_path, md5).read_bytes()==body and server.asked==[0]

drips = {'head': lambda *_: [b'HTTP/1.1 200 OK\r\n', *[b'X: y\r\n', .05]*60], 'body': lambda *_: [head('200 OK', ETag='"x"', Content_Length=999), *[b'x', .05]*60],
    'no length': lambda *_: [head('200 OK'), *[b'x', .05]*60], 'a byte a line': lambda req, n: [.05, head('206 Partial' if n else '200 OK', ETag='"x"', Content_Length=999-n, Content_Range=f'bytes {n}-998/999')+b'x']}

@pytest.mark.parametrize('answer', drips.values(), ids=drips)
def test_a_drip_ends(tmp_path, monkeypatch, answer):
    "A byte now and then, for ever, within a line or one a line"
    monkeypatch.setattr(download, '_patience', .3)
    url,asked = raw(answer)
    with pytest.raises(FineGrainedError, match='less than 1,024 bytes a second|no answer within') as e: fetch(url, tmp_path, md5)
    assert url in str(e.value) and len(asked)<30

def test_full_disk(server, tmp_path, monkeypatch):
    "Said as such; what has arrived is gone on with"
    real,room = open,[100_000]
    class Full(io.FileIO):
        def write(self, b):
            room[0] -= len(b)
            if room[0]<0: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(b)
    monkeypatch.setattr(download, 'open', lambda fn, mode: Full(fn, mode.replace('b', '')), raising=False)
    with pytest.raises(FineGrainedError, match="birds.tgz' cannot be written .No space left on device.: make room"): fetch(server.url, tmp_path, md5)
    kept = (tmp_path/'.birds.tgz.part').stat().st_size
    assert kept>0
    monkeypatch.undo()
    assert fetch(server.url, tmp_path, md5).read_bytes()==body and server.asked==[0,kept]

def test_places_that_cannot_be_written(server, tmp_path):
    long = 'x'*300
    with pytest.raises(FineGrainedError, match='cannot be written .File name too long'): fetch(server.url.replace('birds', long), tmp_path, md5)
    (tmp_path/'file').write_text('mine')
    with pytest.raises(FineGrainedError, match='cannot be written .*another folder'): fetch(server.url, tmp_path/'file'/'below', md5)
    (tmp_path/'a.zip').write_bytes(zipped(tmp_path/'b.zip', ('1.txt', 0, b'robin')).read_bytes())
    with pytest.raises(FineGrainedError, match='cannot be written'): unpack(tmp_path/'a.zip', tmp_path/long)
    with pytest.raises(FineGrainedError, match='is a file: give the name of a folder'): unpack(tmp_path/'a.zip', tmp_path/'file')
    assert (tmp_path/'file').read_text()=='mine'

# Archives

def tar(fn, *entries):
    with tarfile.open(fn, 'w:gz') as t:
        for name,kind,x in entries:
            m = tarfile.TarInfo(name)
            m.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE): m.linkname = x
            elif kind==tarfile.REGTYPE: m.size = len(x)
            t.addfile(m, io.BytesIO(x) if kind==tarfile.REGTYPE else None)
    return fn

def zipped(fn, *entries):
    with zipfile.ZipFile(fn, 'w') as z:
        for name,mode,b in entries:
            i = zipfile.ZipInfo(name)
            i.external_attr = mode<<16
            z.writestr(i, b)
    return fn

good = 'birds/1.txt',tarfile.REGTYPE,b'robin'
hostile = [('../evil',tarfile.REGTYPE,b'x'), ('/evil',tarfile.REGTYPE,b'x'), ('birds/../../evil',tarfile.REGTYPE,b'x'), ('C:/evil',tarfile.REGTYPE,b'x'), ('..\\evil',tarfile.REGTYPE,b'x'),
    ('birds/link',tarfile.SYMTYPE,'/etc'), ('birds/link',tarfile.SYMTYPE,'1.txt'), ('birds/hard',tarfile.LNKTYPE,'birds/1.txt'), ('birds/pipe',tarfile.FIFOTYPE,None), ('birds/disk',tarfile.BLKTYPE,None)]

@pytest.mark.parametrize('bad', hostile, ids=lambda o: f'{o[0]}-{o[1].decode()}')
def test_hostile_tar(tmp_path, bad):
    (tmp_path/'in').mkdir()
    fn = tar(tmp_path/'in'/'a.tgz', good, bad)
    with pytest.raises(FineGrainedError, match='nothing of it was kept') as e: unpack(fn, tmp_path/'out'/'set')
    assert bad[0] in str(e.value) and str(fn) in str(e.value)
    assert names(tmp_path/'out')==[] and names(tmp_path)==['in','out']

@pytest.mark.parametrize('bad', [('../evil', 0o100644), ('birds/link', stat.S_IFLNK|0o777), ('/evil', 0)], ids=str)
def test_hostile_zip(tmp_path, bad):
    fn = zipped(tmp_path/'a.zip', ('birds/1.txt', 0o100644, b'robin'), (*bad, b'/etc/passwd'))
    with pytest.raises(FineGrainedError, match='nothing of it was kept'): unpack(fn, tmp_path/'set')
    assert names(tmp_path)==['a.zip']

def test_good_archives(tmp_path):
    for fn in (tar(tmp_path/'a.tgz', ('birds',tarfile.DIRTYPE,None), good), zipped(tmp_path/'b.zip', ('birds/', stat.S_IFDIR<<0, b''), ('birds/1.txt', 0, b'robin'))):
        to = unpack(fn, tmp_path/fn.stem)
        assert (to/'birds'/'1.txt').read_bytes()==b'robin'
        assert stat.S_IMODE(to.stat().st_mode)==0o755
        assert unpack(fn, to)==to # it is there

@pytest.mark.parametrize('spoil', [lambda b: b[:len(b)//2], lambda b: b'not an archive', lambda b: b[:len(b)//2]+bytes(64)+b[len(b)//2+64:]], ids=['short','other','damaged'])
def test_damaged(tmp_path, spoil):
    fn = tar(tmp_path/'a.tgz', *[(f'birds/{i}',tarfile.REGTYPE,os.urandom(5000)) for i in range(20)])
    fn.write_bytes(spoil(fn.read_bytes()))
    with pytest.raises(FineGrainedError, match='damaged'): unpack(fn, tmp_path/'set')
    assert names(tmp_path)==['a.tgz']

def test_killed_while_unpacking(tmp_path):
    fn = tar(tmp_path/'a.tgz', *[(f'birds/{i}',tarfile.REGTYPE,os.urandom(1000)) for i in range(300)])
    slow = f"import shutil, time; real = shutil.copyfileobj\ndef copy(*a): real(*a); time.sleep(.02)\nshutil.copyfileobj = copy\nfrom fgvc_fast.datasets.download import unpack; unpack({str(fn)!r}, {str(tmp_path/'set')!r})"
    p = subprocess.Popen([sys.executable, '-c', slow])
    for _ in range(9000):
        if len(list(tmp_path.glob('.set.*.unpacking/birds/*'))) > 10: break
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'set').exists() and list(tmp_path.glob('.set.*.unpacking'))
    assert len(list((unpack(fn, tmp_path/'set')/'birds').iterdir()))==300
    assert names(tmp_path)==['a.tgz','set']

packers = dict(tar=('tar', bytes), gz=('tar.gz', gzip.compress), bz2=('tar.bz2', bz2.compress), xz=('tar.xz', lzma.compress))

def plain_tar(n=12, size=3000):
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode='w') as t:
        for i in range(n):
            m = tarfile.TarInfo(f'birds/{i}')
            m.size = size
            t.addfile(m, io.BytesIO(np.random.default_rng(i).bytes(size)))
    return buf.getvalue()

@pytest.mark.parametrize('kind', [*packers, 'zip'])
def test_any_damage_is_one_error_or_none(tmp_path, kind):
    "Bits, bytes, ends: seeded; what is unpacked none the less (damage that the format has no sum for) holds the same names or is refused"
    rng,(end,pack) = np.random.default_rng(0),packers.get(kind, ('zip',None))
    fn = tmp_path/f'a.{end}'
    good = zipped(fn, *[(f'birds/{i}', 0, np.random.default_rng(i).bytes(3000)) for i in range(12)]).read_bytes() if kind=='zip' else pack(plain_tar())
    seen = 0
    for i in range(40):
        b = bytearray(good)
        if i%4==0: del b[int(rng.integers(1, len(b))):]
        elif i%4==1: b[int(rng.integers(len(b)))] ^= 1<<int(rng.integers(8))
        elif i%4==2:
            at = int(rng.integers(len(b)))
            b[at:at+64] = rng.bytes(64)
        else: b[:int(rng.integers(1, 600))] = b''
        fn.write_bytes(b)
        try: unpack(fn, tmp_path/'set')
        except FineGrainedError as e:
            seen += 1
            assert str(fn) in str(e) and not (tmp_path/'set').exists()
        assert names(tmp_path) in ([fn.name], [fn.name,'set'])
        if (tmp_path/'set').exists(): shutil.rmtree(tmp_path/'set')
    assert seen>=(15 if kind=='tar' else 30) # a tar has a sum for its heads alone

def test_encrypted_and_foreign_archives(tmp_path):
    fn = zipped(tmp_path/'a.zip', ('1.txt', 0, b'robin'))
    b = bytearray(fn.read_bytes())
    for at in (b.index(b'PK\x03\x04')+6, b.index(b'PK\x01\x02')+8): b[at] |= 1 # the flag that says so, in both heads
    fn.write_bytes(b)
    with pytest.raises(FineGrainedError, match='is encrypted: unpack it by hand'): unpack(fn, tmp_path/'set')
    for name,b in (('a.7z', b"7z\xbc\xaf\x27\x1c"+bytes(99)), ('a.tar.zst', b'\x28\xb5\x2f\xfd'+bytes(99)), ('a.rar', b'Rar!\x1a\x07\x00')):
        (tmp_path/name).write_bytes(b)
        with pytest.raises(FineGrainedError, match='none that can be opened here'): unpack(tmp_path/name, tmp_path/'set')
    with pytest.raises(FineGrainedError, match='none that can be opened'): unpack([fn.with_name('a.tar.zst'), tmp_path/'a.rar'], tmp_path/'set') # not copied as if it were whole
    assert not (tmp_path/'set').exists()

def test_bombs(tmp_path, monkeypatch):
    "Much out of little, in every packing, as one file, as many, or as a name; and more than the disk has"
    monkeypatch.setattr(download, '_floor', 1<<20)
    def plain_zeros(size, n):
        buf = io.BytesIO()
        with tarfile.open(fileobj=buf, mode='w') as t:
            for i in range(n):
                m = tarfile.TarInfo(f'{i}')
                m.size = size
                t.addfile(m, io.BytesIO(bytes(size)))
        return buf.getvalue()
    for end,pack in (packers[k] for k in ('gz','bz2','xz')):
        for size,n in ((6<<20, 1), (0, 3000)):
            fn = tmp_path/f'a.{end}'
            fn.write_bytes(pack(plain_zeros(size, n)))
            with pytest.raises(FineGrainedError, match='would become more than'): unpack(fn, tmp_path/'set')
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('1', bytes(6<<20))
    with pytest.raises(FineGrainedError, match='would become more than'): unpack(tmp_path/'a.zip', tmp_path/'set')
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode='w', format=tarfile.GNU_FORMAT) as t: t.addfile(tarfile.TarInfo('x'*(3<<20)))
    (tmp_path/'a.tgz').write_bytes(gzip.compress(buf.getvalue()))
    with pytest.raises(FineGrainedError, match='a name of 3,'): unpack(tmp_path/'a.tgz', tmp_path/'set')
    fn = tar(tmp_path/'b.tgz', good)
    with monkeypatch.context() as m:
        m.setattr(shutil, 'disk_usage', lambda p: type('free', (), dict(free=1000)))
        with pytest.raises(FineGrainedError, match='more than the 1,000 bytes that the disk'): unpack(fn, tmp_path/'set')
    assert not [o for o in names(tmp_path) if o.startswith('.') or o=='set']
    assert (unpack(fn, tmp_path/'set')/'birds'/'1.txt').read_bytes()==b'robin'

def test_disk_full_while_unpacking(tmp_path, monkeypatch):
    fn = tar(tmp_path/'a.tgz', good)
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(shutil, 'copyfileobj', full)
    with pytest.raises(FineGrainedError, match='The disk is full: .*a.tgz could not be unpacked'): unpack(fn, tmp_path/'set')
    assert names(tmp_path)==['a.tgz']

@pytest.mark.parametrize('names_', [('a', 'a/b'), ('a/b', 'a'), ('x'*300,), ('.',), ('a\udcff/../../b',)], ids=str)
def test_entries_that_cannot_be_written(tmp_path, names_):
    fn = tar(tmp_path/'a.tgz', *[(o,tarfile.REGTYPE,b'x') for o in names_])
    with pytest.raises(FineGrainedError, match='nothing of it was kept') as e: unpack(fn, tmp_path/'set')
    str(e.value).encode('utf-8') # can be printed
    assert names(tmp_path)==['a.tgz']

@pytest.mark.parametrize('args', [(None,'x'), (5,'x'), ([],'x'), ([None],'x'), ('gone.zip','x'), ('.','x'), (__file__,None), (__file__,5)], ids=str)
def test_arguments_of_unpack(tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FineGrainedError, match='unpack: |There is no archive'): unpack(*args)
    assert not list(tmp_path.iterdir())
