"Build the docs site from the notebooks: `python nbs/_docs.py` (into `_docs/`, or the folder given)"
import ast, inspect, json, logging, os, re, shutil, sys, tempfile, time, warnings
os.environ.setdefault('NO_MKDOCS_2_WARNING', '1')
from base64 import b64decode
from collections import Counter
from dataclasses import is_dataclass
from fastcore.basics import AttrDict, listify
from fastcore.docments import docments
from fastcore.nbio import join_out, nb_frontmatter, read_nb
from functools import cached_property
from importlib import import_module
from latex2mathml.converter import convert
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from nbdev.config import nbpath2html
from nbdev.doclinks import patch_name
from pathlib import Path
from posixpath import dirname, relpath
from textwrap import fill

nbs = Path(__file__).parent
sys.path.insert(0, str(nbs.parent)) # the package beside these notebooks, whichever is installed
empty = inspect.Parameter.empty
functions = ast.FunctionDef,ast.AsyncFunctionDef
areas = { # of API pages, by the number that each begins with
    0:'Core and data', 50:'Data sets', 100:'Models', 200:'Losses, metrics, levels', 300:'Augmentation', 400:'Training', 500:'Learner',
    600:'Interpretation', 700:'Robustness', 800:'Words and generation', 900:'Studies, saving, logs'}

# Notebooks and what they export

def is_public(name): return not any(o.startswith('_') for o in name.split('.'))

def _names(o):
    "Names that the statement `o` defines; a patched method is named after its class"
    if isinstance(o, functions): return listify(patch_name(o))
    if isinstance(o, ast.ClassDef): return [o.name]
    targets = o.targets if isinstance(o, ast.Assign) else [o.target] if isinstance(o, ast.AnnAssign) else []
    return [n.id for t in targets for n in getattr(t, 'elts', [t]) if isinstance(n, ast.Name)]

def definitions(src):
    "What `src` defines: {name: (statement, names of its methods)}"
    def methods(o): return [f'{o.name}.{m.name}' for m in o.body if isinstance(m, functions)] if isinstance(o, ast.ClassDef) else []
    return {n: (o, methods(o)) for o in ast.parse(src).body for n in _names(o)}

class Page:
    "A notebook that becomes a page: `path` is where it will stand, `mod` the module it exports"
    def __init__(self, fn):
        self.fn,self.nb = fn,read_nb(fn)
        self.number = int((re.match(r'\d+', fn.name) or '0')[0])
        self.path = nbpath2html(fn.relative_to(nbs)).with_suffix('.md').as_posix()
        fm = nb_frontmatter(self.nb)
        self.title,self.subtitle = fm['title'],fm.get('description', '')
        mod = next((c.directives['default_exp'] for c in self.nb.cells if c.cell_type=='code' and 'default_exp' in c.directives), None)
        self.modname = mod and f'fgvc_fast.{mod}'
        self.cells = {c.id: definitions(source(c)) for c in self.nb.cells if c.cell_type=='code' and c.directives.keys() & {'export','exports'}}

    @cached_property
    def mod(self): return import_module(self.modname)

    def names(self, methods=True):
        "Public names that are documented here"
        return [o for ds in self.cells.values() for n,(_,ms) in ds.items() for o in [n, *(ms if methods else [])] if is_public(o)]

    def area(self): return areas[max(o for o in areas if o<=self.number)]

    def look_up(self, name):
        "The object called `name` in the module, as its class holds it"
        o = self.mod
        for p in name.split('.'): o = inspect.getattr_static(o, p) if isinstance(o, type) else getattr(o, p)
        return o

def source(c): return re.sub(r'(?m)^[ \t]*#\|.*\n?|^[ \t]*# chkstyle:.*\n?|[ \t]*# chkstyle:.*$', '', c.source).strip()

# Markdown: names become links (but for those said to be another library's), formulas MathML, which browsers draw without any script

_re_md = re.compile(r'''(?P<keep> ^[ \t]*(?P<fence>```+|~~~+).*?^[ \t]*(?P=fence)[ \t]*$ | ^\#+[ ].*?$ | !?\[[^\]\n]*\]\([^)\n]*\)
        | \b(?:fastai|timm|torchvision)(?:'s)?(?:[ ]own)?[ ]`[^`\n]+` )
    | `(?P<code>[^`\n]+)` | \$\$(?P<block>.+?)\$\$ | \$(?P<inline>\S(?:[^$\n]*\S)?)\$''', re.M|re.S|re.X)
_re_file = re.compile(r'\]\((?:\.\./)+([\w-][\w./-]*)\)') # of the repository, outside of the notebooks

def file_page(path):
    "Where the file `path` of the repository will stand"
    return f'project/{Path(path).stem.lower()}.md'

_classes = dict(learn='Learner', dls='FineGrainedLoaders', data='FineGrainedData', interp='FineGrainedInterpretation') # what the usual names of variables stand for

class Names:
    "Where each public name is documented"
    def __init__(self, pages):
        self.pages = {n: p for p in pages for n in p.names()}
        tails = [n.rpartition('.') for n in self.pages if '.' in n]
        # a method's own name will do if it is one of a kind, and no word that could mean something else
        self.methods = {t: f'{c}.{t}' for c,_,t in tails if '_' in t and sum(t==o for *_,o in tails)==1}

    def find(self, code, page):
        "The public name that `code` begins with, if any; `page` may have a method of that name"
        m = re.fullmatch(r'(?s)([A-Za-z][\w.]*)(\(.*)?', code)
        if not m: return
        top,_,rest = m[1].partition('.')
        name = f'{_classes.get(top, top)}.{rest}' if rest else top
        if name not in self.pages: name = self.methods.get(name)
        elif self.pages[name] is not page: name = next((n for n,p in self.pages.items() if p is page and n.endswith(f'.{name}')), name)
        return name

    def link(self, code, page, skip=()):
        "`code` in back-ticks, linked to its documentation if it has one"
        name = self.find(code, page)
        if not name or code in skip: return f'`{code}`'
        to = self.pages[name].path
        return f"[`{code}`]({'' if to==page.path else relpath(to, dirname(page.path))}#{name})"

    def markdown(self, md, page, skip=()):
        "`md` with its names linked, its formulas drawn, and links to notebooks turned into links to pages; other code is left alone"
        def to_page(m): return f"]({m[1]}{nbpath2html(m[2]).with_suffix('.md')}"
        def to_file(m): return f']({relpath(file_page(m[1]), dirname(page.path))})' if (nbs.parent/m[1]).is_file() else m[0]
        def one(m):
            if m['keep']: return m[0] if m['fence'] else _re_file.sub(to_file, re.sub(r'\]\(((?:[\w.-]+/)*)([\w.-]+\.ipynb)', to_page, m[0]))
            if m['code']: return self.link(m['code'], page, skip)
            if m['block']: return f"""<div class="formula">{convert(m['block'], display='block')}</div>"""
            return f"<span>{convert(m['inline'])}</span>" # bare, at the start of a line, it would end the paragraph
        return _re_md.sub(one, md)

def escaped(s):
    "Text from a comment or a docstring, which knows back-ticks and no other markdown"
    return ''.join(o if i%2 else re.sub(r'([*_\[\]\\|#$])', r'\\\1', o).replace('<', '&lt;') for i,o in enumerate(re.split(r'(`[^`]+`)', ' '.join(s.split()))))

# What is said of a name: signature, docstring, arguments

class Shown:
    "Something that prints as `text`"
    def __init__(self, text): self.text = text
    def __repr__(self): return self.text

def value(o):
    "A default as one would write it"
    if type(o) is tuple: return f"({', '.join(map(value, o))}{','*(len(o)==1)})"
    return f'{o:.4g}' if isinstance(o, float) else getattr(o, '__name__', None) or repr(o)

def kind(o):
    "A type as one would write it"
    if o in (empty, None, type(None)): return ''
    return o if isinstance(o, str) else re.sub(r'\b(?:\w+\.)+(\w+)', r'\1', inspect.formatannotation(o))

def said_of_rest(src, node):
    "What the comment beside `**kwargs` says where `node` is written in `src`"
    rest = isinstance(node, functions) and getattr(node, 'args', None) and node.args.kwarg
    m = rest and re.search(r'#\s*(.+)', src.splitlines()[rest.lineno-1])
    return m[1] if m else ''

class Doc:
    "Signature, docstring and arguments of `o`, as the package holds it; `rest` is what is said of `**kwargs`"
    def __init__(self, o, rest=''):
        self.is_prop = isinstance(o, property)
        o = o.fget if self.is_prop else getattr(o, '__func__', o)
        self.doc = o.__doc__ or ''
        f = o.__init__ if isinstance(o, type) and not is_dataclass(o) else o
        self.args,self.returns,self.sig = {},{},None
        if inspect.ismethoddescriptor(f) and not hasattr(f, '__wrapped__'): return # a builtin's
        self.sig = inspect.signature(f)
        docs = docments(f, full=True, args_kwargs=True)
        self.returns = docs.pop('return', {})
        p = inspect.Parameter('kwargs', inspect.Parameter.VAR_KEYWORD)
        if rest and p.kind not in [v.kind for v in docs.values()]: # @delegates has put others in its place
            docs['kwargs'] = AttrDict(docment=rest, anno=empty, default=empty, kind=p.kind)
            self.sig = self.sig.replace(parameters=[*self.sig.parameters.values(), p])
        self.args = {k: v for k,v in docs.items() if k not in ('self','cls')}
        if f is not o and not self.said and not f.__module__.startswith('fgvc_fast'): self.args,self.sig = {},inspect.Signature() # another library's, and nothing is said of it

    @property
    def said(self): return any(v['docment'] for v in self.args.values())

    def signature(self, name):
        "How it is called; with types where no table shows them"
        ps = [p.replace(annotation=empty if self.said else p.annotation, default=empty if p.default is empty else Shown(value(p.default)))
            for k,p in self.sig.parameters.items() if k not in ('self','cls')]
        ps = [p.replace(annotation=empty if p.annotation is empty else Shown(kind(p.annotation))) for p in ps]
        res = name + str(self.sig.replace(parameters=ps, return_annotation=empty))
        if kind(self.sig.return_annotation): res += f' -> {kind(self.sig.return_annotation)}'
        return fill(res, 88, subsequent_indent='    ', break_long_words=False, break_on_hyphens=False)

    def rows(self, code):
        "Rows of the table of arguments"
        stars = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
        for k,v in self.args.items():
            yield f"`{stars.get(v.kind, '')}{k}`",code(kind(v.anno)),'' if v.default is empty else f'`{value(v.default)}`',v.docment or ''
        if self.returns.get('docment'): yield '*returns*',code(kind(self.returns.anno)),'',self.returns.docment

def table(rows): return '\n'.join(f"| {' | '.join(o)} |" for o in rows)

def fenced(s, lang='python'): return f'````{lang}\n{s}\n````'

def div(cls, md): return f'<div class="{cls}" markdown>\n\n{md}\n\n</div>'

# Pages

class Site:
    "All notebooks as markdown in the folder `to`"
    def __init__(self, to):
        self.to = to
        def of(folder): return [Page(o) for o in sorted((nbs/folder).glob('*.ipynb')) if o.name[0] not in '_.']
        self.front,self.guide,self.lessons,self.api = Page(nbs/'index.ipynb'),of('guide'),of('lessons'),of('api')
        self.pages = [self.front, *self.guide, *self.lessons, *self.api]
        told = [c for p in self.pages if not p.modname for c in p.nb.cells]
        code = [o for c in told for o in ([source(c)] if c.cell_type=='code' else re.findall(r'(?s)```.*?```|`[^`\n]+`', source(c)))]
        self.uses = Counter(re.findall(r'\.?\w+', '\n'.join(code))) # of a name, a method's with its point, in all code that is no reference
        linked = [f for p in self.pages for c in p.nb.cells if c.cell_type=='markdown' for f in _re_file.findall(source(c))]
        self.files = [o for o in dict.fromkeys(linked) if (nbs.parent/o).is_file()]
        self.names = Names(self.pages)

    def entry(self, page, name, src, node, methods=(), level=3):
        "Markdown for one documented name, its documented methods below it"
        head = f"{'#'*level} `{name}` {{ #{name} .name }}"
        if not isinstance(node, (*functions, ast.ClassDef)):
            lines = ast.get_source_segment(src, node).splitlines()
            return [head, fenced('\n'.join(lines[:8] + ['...']*(len(lines)>8)))]
        d = Doc(page.look_up(name), said_of_rest(src, node))
        skip = {name, *d.args}
        def text(s): return self.names.markdown(escaped(s), page, skip)
        def code(s): return s and self.names.link(s, page, {name})
        res = [head]
        if d.sig and not d.is_prop: res.append(fenced(d.signature(name), ' { .python .signature }'))
        if d.is_prop: res.append('*A property*')
        if d.doc: res.append(text(d.doc))
        if d.said: res.append(div('args', table([('Argument','Type','Default','Meaning'), ('---',)*4, *((a,t,v,text(m)) for a,t,v,m in d.rows(code))])))
        docs = {m: Doc(page.look_up(m)) for m in methods if is_public(m)}
        rest = [f"`{m.rpartition('.')[2]}`{{ #{m} }}" for m,o in docs.items() if not (o.doc or o.said)]
        if rest: res.append(f"Further methods: {', '.join(rest)}\n{{ .more }}")
        for m,o in docs.items():
            if o.doc or o.said: res += self.entry(page, m, src, ast.FunctionDef(), level=4)
        return res

    def exported(self, page, c):
        "Markdown for an exported cell: what it defines, and its source, folded"
        src,defs = source(c),page.cells[c.id]
        if not defs: return []
        res = [o for n,(node,ms) in defs.items() if is_public(n) for o in self.entry(page, n, src, node, ms)]
        if all(is_public(n) and not isinstance(o, (*functions, ast.ClassDef)) for n,(o,_) in defs.items()) and src.count('\n')<8: return res # all of it is shown already
        of = '' if res else ' of ' + ', '.join(f'<code>{o}</code>' for o in defs)
        return res + [f'<details class="source" data-search-exclude markdown>\n<summary>Source{of}</summary>\n\n{fenced(src)}\n\n</details>']

    def output(self, page, o, name):
        "Markdown for one output of a cell; a picture becomes a file called `name`"
        if o['output_type']=='error': raise ValueError(f'{page.fn}: a cell holds the error {o["ename"]}: {o["evalue"]}')
        if o['output_type']=='stream': d = {'text/plain': o['text']} if o['name']=='stdout' else {}
        else: d = o['data']
        for typ in ('image/png','image/jpeg','image/svg+xml','text/html','text/markdown','text/plain'):
            if typ in d: break
        else: return ''
        s = join_out(d[typ])
        if typ.startswith('image/'):
            fn = (self.to/page.path).parent/f"{name}.{dict(jpeg='jpg').get(typ[6:], typ[6:9])}"
            fn.write_bytes(s.encode() if 'svg' in typ else b64decode(s))
            return f'![output]({fn.name})'
        if typ=='text/html':
            s = re.sub(r'(?s)<style scoped>.*?</style>\s*', '', s)
            return f"""<div class="output">{re.sub(r' border="1"| class="dataframe"', '', s)}</div>"""
        if typ=='text/plain': return f'```` {{ .text .output .no-copy }}\n{s.rstrip()}\n````'
        # what code says in markdown has headings of its own, which are none of the page's
        s = ''.join(o if i%2 else re.sub(r'(?m)^#+ (.*)', r'**\1**', o) for i,o in enumerate(re.split(r'(?s)(```.*?```)', s)))
        return div('output prose', self.names.markdown(s, page))

    def cell(self, page, c):
        "Pieces of markdown for one cell"
        if c.cell_type=='markdown': return [self.names.markdown(c.source, page)]
        if c.cell_type!='code': return []
        d = c.directives
        if c.id in page.cells: res = self.exported(page, c)
        elif d.keys() & {'hide','default_exp','exporti'}: return []
        else: res = [] if 'hide_input' in d or d.get('echo')=='false' else [fenced(source(c))]
        if 'hide_output' in d or d.get('output')=='false': return res
        return res + [self.output(page, o, f'{Path(page.path).stem}-{c.id}-{i}') for i,o in enumerate(c.get('outputs', []))]

    def markdown(self, page):
        "Markdown for a page: title, subtitle, which module it is, then its cells"
        first,*rest = page.nb.cells
        text = re.sub(r'(?m)\A# .*\n*(?:> .*\n*)?|^- skip_\w+:.*\n?', '', first.source)
        boost = 'search: {boost: 2}\n' if page is self.front or page in self.guide else '' # they say it shorter, and lead to the rest
        res = [f"---\ndescription: {json.dumps(page.subtitle.replace('`', ''), ensure_ascii=False)}\n{boost}---", f'# {page.title}', f'> {self.names.markdown(page.subtitle, page)}']
        if page.modname: res.append(f'`{page.modname}`{{ .module }}')
        res.append(self.names.markdown(text, page))
        return '\n\n'.join(filter(None, res + [o for c in rest for o in self.cell(page, c)])) + '\n'

    def by_area(self):
        "API pages by area"
        res = {}
        for p in self.api: res.setdefault(p.area(), []).append(p)
        return res

    def contents(self):
        "Markdown for the first page of the API: every module by area, with the names that readers meet first, most used before the others"
        here = Page.__new__(Page)
        here.path = 'api/index.md'
        called = {v: k for k,v in _classes.items()} | dict(FineGrainedLearner='learn')
        def written(n): return f"{called.get(n.partition('.')[0], n.partition('.')[0])}.{n.partition('.')[2]}" if '.' in n else n
        def row(p):
            def links(names): return ' '.join(f'[`{written(n)}`]({Path(p.path).name}#{n})' for n in names)
            uses = {n: self.uses['.'+n.rpartition('.')[2] if '.' in n else n] for n in p.names(methods=False)}
            names = sorted(uses, key=lambda n: -uses[n]) # as they are defined where they are used alike
            key = [n for n in names if uses[n]][:9] or names[:4]
            rest = [n for n in names if n not in key]
            said = [f'### [{p.title}]({Path(p.path).name})'] + [f'{links(key)}\n{{ .key }}']*bool(key) + [self.names.markdown(p.subtitle, here)]
            return div('room', '\n\n'.join(said + [f"`{p.modname}`{' also has ' if rest else ''}{links(rest)}\n{{ .more }}"]))
        rooms = [o for k,ps in self.by_area().items() for o in (f'## {k}', *map(row, ps))]
        return '\n\n'.join(['# API', '> Every module by area, in the order in which they build on each other, and all that it gives', *rooms])

    def file(self, path):
        "Markdown for the page of a file of the repository"
        text,name = (nbs.parent/path).read_text(encoding='utf-8'),Path(path)
        return text if name.suffix=='.md' else f"# {name.name}\n\n{fenced(text, {'.py':'python', '.cff':'yaml'}.get(name.suffix, 'text'))}\n"

    def write(self):
        "Write all pages; returns what mkdocs calls `nav`"
        for path in [*(p.path for p in self.pages), *map(file_page, self.files), 'api/index.md']: (self.to/path).parent.mkdir(parents=True, exist_ok=True) # pictures go there too
        texts = {p.path: self.markdown(p) for p in self.pages} | {file_page(o): self.file(o) for o in self.files} | {'api/index.md': self.contents()}
        for path,text in texts.items(): (self.to/path).write_text(text, encoding='utf-8')
        shutil.copytree(nbs/'images', self.to/'images')
        shutil.copy(nbs/'_docs.css', self.to/'extra.css')
        shutil.copy(nbs/'_docs.js', self.to/'iframe-worker.js')
        def paths(ps): return [p.path for p in ps]
        rooms = [{k: paths(ps)} if len(ps)>1 else ps[0].path for k,ps in self.by_area().items()]
        files = [{Path(o).name if o.endswith('.py') else Path(o).stem.capitalize(): file_page(o)} for o in self.files]
        parts = dict(Guide=paths(self.guide), Lessons=paths(self.lessons), API=['api/index.md', *rooms], Project=files)
        return [{'Start': 'index.md'}, *({k: v} for k,v in parts.items() if v)]

def main(dest=nbs.parent/'_docs'):
    "Build the site beside `dest`, and put it there once it is whole"
    dest,began = Path(dest),time.perf_counter()
    logging.basicConfig(format='%(levelname)s: %(message)s')
    warnings.simplefilter('ignore', FutureWarning) # of the libraries that are imported to be asked
    if dest.exists() and any(dest.iterdir()) and not (dest/'search'/'search_index.js').exists(): sys.exit(f'{dest} holds something else than a site: give another folder')
    with tempfile.TemporaryDirectory() as d:
        md,site = Path(d)/'md',Path(d)/'site'
        s = Site(md)
        try: build(load_config(str(nbs/'mkdocs.yml'), docs_dir=str(md), site_dir=str(site), nav=s.write()))
        except Abort as e: sys.exit(f'No site was built. {e}')
        if dest.exists(): shutil.rmtree(dest)
        shutil.copytree(site, dest)
    print(f"{len(s.pages)} pages in {time.perf_counter()-began:.0f} s: open {dest/'index.html'}")

if __name__=='__main__': main(*sys.argv[1:])
