"Downloads that break off, change, lie; archives that climb out; processes that are killed: nothing half-done looks done"
import hashlib, io, os, re, signal, stat, subprocess, sys, tarfile, threading, time, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.download import fetch, unpack

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
        self.send_header('Content-Length', len(s.body)-begin)
        self.end_headers()
        out = s.body[begin:]
        if s.drops: out = out[:s.drops.pop(0)]
        for i in range(0, len(out), 1<<16):
            self.wfile.write(out[i:i+(1<<16)])
            time.sleep(s.slow)
        if len(out)<len(s.body)-begin: self.connection.close()

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
    server.drops = [1<<20, 0, 0]
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
    server.drops = [1<<20, 0, 0]
    with pytest.raises(FineGrainedError): fetch(server.url, tmp_path, md5)
    server.body,server.tag = os.urandom(2<<20),tag
    new = 'md5:'+hashlib.md5(server.body).hexdigest()
    assert fetch(server.url, tmp_path, new).read_bytes()==server.body

def test_last_byte_then_killed(server, tmp_path):
    "All had arrived before the end could be noted: the server has no more, and the sum decides"
    (tmp_path/'.birds.tgz.part').write_bytes(body)
    (tmp_path/'.birds.tgz.mark').write_text(server.tag)
    assert fetch(server.url, tmp_path, md5).read_bytes()==body

def test_wrong_checksum(server, tmp_path):
    with pytest.raises(FineGrainedError, match='not the file that was published'): fetch(server.url, tmp_path, 'md5:'+'0'*32)
    assert names(tmp_path)==[]

def test_killed_while_fetching(server, tmp_path):
    server.slow = .05
    code = f"from fgvc_fast.data.download import fetch; fetch({server.url!r}, {str(tmp_path)!r}, {md5!r})"
    p = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    part = tmp_path/'.birds.tgz.part'
    for _ in range(400):
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
    slow = f"import shutil, time; real = shutil.copyfileobj\ndef copy(*a): real(*a); time.sleep(.02)\nshutil.copyfileobj = copy\nfrom fgvc_fast.data.download import unpack; unpack({str(fn)!r}, {str(tmp_path/'set')!r})"
    p = subprocess.Popen([sys.executable, '-c', slow])
    for _ in range(400):
        if len(list(tmp_path.glob('.set.*.unpacking/birds/*'))) > 10: break
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'set').exists() and list(tmp_path.glob('.set.*.unpacking'))
    assert len(list((unpack(fn, tmp_path/'set')/'birds').iterdir()))==300
    assert names(tmp_path)==['a.tgz','set']
