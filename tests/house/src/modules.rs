//! The modules of one library or program, as their `mod` lines name them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, UseTree, Visibility};

use crate::attributes::{attributes, docs, is_public, only_for_tests, path_attribute};
use crate::error::Error;

/// flatc's first line. What it wrote is not ours to arrange.
const GENERATED: &str = "// automatically generated";

/// A module's place in [`Tree::modules`].
pub(crate) type ModuleIndex = usize;

/// The place of `lib.rs` or `main.rs`.
pub(crate) const ROOT: ModuleIndex = 0;

#[derive(Debug)]
pub(crate) struct Tree {
    /// The root first, parents before their children.
    pub(crate) modules: Vec<Module>,
}

#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) parent: Option<ModuleIndex>,
    pub(crate) file: PathBuf,
    /// Whether its text is in its parent's file.
    pub(crate) inline: bool,
    /// Whether it is declared with `pub mod`.
    pub(crate) public: bool,
    pub(crate) children: BTreeMap<String, ModuleIndex>,
    /// What it defines, by name.
    pub(crate) items: BTreeSet<String>,
    pub(crate) types: Vec<Mention<String>>,
    /// Its types and functions that are declared with `pub`.
    pub(crate) public_items: Vec<Mention<DocumentedItem>>,
    pub(crate) uses: Vec<Mention<UseItem>>,
    /// Paths of two segments or more, outside of `use`.
    pub(crate) paths: Vec<Mention<Vec<String>>>,
}

/// Something that a module says, and the line.
#[derive(Debug, Clone)]
pub(crate) struct Mention<T> {
    pub(crate) line: usize,
    pub(crate) what: T,
}

/// An item and the text of its documentation.
#[derive(Debug, Clone)]
pub(crate) struct DocumentedItem {
    pub(crate) name: String,
    pub(crate) docs: String,
}

#[derive(Debug, Clone)]
pub(crate) struct UseItem {
    pub(crate) path: Vec<String>,
    /// The name that it gives; none for `*` and `_`.
    pub(crate) name: Option<String>,
    pub(crate) glob: bool,
    /// Whether others may import the name from here.
    pub(crate) reexport: bool,
    /// The documentation of a `pub use`; none for narrower ones.
    pub(crate) public_docs: Option<String>,
}

impl Tree {
    /// Reads the tree below `file`, a `lib.rs` or `main.rs`, without its test modules.
    pub(crate) fn read(file: &Path) -> Result<Self, Error> {
        let mut tree = Self { modules: Vec::new() };
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        tree.read_module("crate".into(), None, file.to_owned(), folder)?;
        Ok(tree)
    }

    /// `folder` is where the files of its children are.
    fn read_module(
        &mut self,
        name: String,
        parent: Option<ModuleIndex>,
        file: PathBuf,
        folder: PathBuf,
    ) -> Result<ModuleIndex, Error> {
        let text =
            fs::read_to_string(&file).map_err(|error| Error(format!("{}: {error}", file.display())))?;
        let place = self.add(name, parent, file.clone(), false);
        if text.starts_with(GENERATED) {
            return Ok(place);
        }
        let parsed = syn::parse_file(&text)
            .map_err(|error| Error(format!("{}:{}: {error}", file.display(), error.span().start().line)))?;
        if !only_for_tests(&parsed.attrs) {
            self.read_items(place, parsed.items, &file, &folder)?;
        }
        Ok(place)
    }

    fn add(&mut self, name: String, parent: Option<ModuleIndex>, file: PathBuf, inline: bool) -> ModuleIndex {
        let place = self.modules.len();
        if let Some(parent) = parent {
            self.modules[parent].children.insert(name.clone(), place);
        }
        self.modules.push(Module {
            name,
            parent,
            file,
            inline,
            public: false,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            types: Vec::new(),
            public_items: Vec::new(),
            uses: Vec::new(),
            paths: Vec::new(),
        });
        place
    }

    fn read_items(
        &mut self,
        place: ModuleIndex,
        items: Vec<Item>,
        file: &Path,
        folder: &Path,
    ) -> Result<(), Error> {
        for item in items {
            if only_for_tests(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(module) => {
                    let name = unraw(&module.ident);
                    let below = folder.join(&name);
                    let child = if let Some((_, items)) = module.content {
                        let child = self.add(name, Some(place), file.to_owned(), true);
                        self.read_items(child, items, file, &below)?;
                        child
                    } else if let Some(path) = path_attribute(&module.attrs) {
                        // Relative to the file, and what is below is found from there.
                        let path = file.parent().unwrap_or(Path::new("")).join(path);
                        let below = path.parent().unwrap_or(Path::new("")).to_owned();
                        self.read_module(name, Some(place), path, below)?
                    } else {
                        let flat = folder.join(format!("{name}.rs"));
                        let path = if flat.is_file() { flat } else { below.join("mod.rs") };
                        self.read_module(name, Some(place), path, below)?
                    };
                    self.modules[child].public = is_public(&module.vis, &module.attrs);
                }
                other => {
                    let module = &mut self.modules[place];
                    if let Some((name, is_type)) = defined(&other) {
                        let line = name.span().start().line;
                        let name = unraw(name);
                        if is_type {
                            module.types.push(Mention { line, what: name.clone() });
                        }
                        if let Some(docs) = public_docs(&other) {
                            let what = DocumentedItem { name: name.clone(), docs };
                            module.public_items.push(Mention { line, what });
                        }
                        module.items.insert(name);
                    }
                    ItemReader { module }.visit_item(&other);
                }
            }
        }
        Ok(())
    }

    /// `crate::forwarder::head`
    pub(crate) fn full_name(&self, place: ModuleIndex) -> String {
        let module = &self.modules[place];
        match module.parent {
            Some(parent) => format!("{}::{}", self.full_name(parent), module.name),
            None => module.name.clone(),
        }
    }

    /// The module whose file holds the text of `place`.
    pub(crate) fn with_file(&self, place: ModuleIndex) -> ModuleIndex {
        match self.modules[place].parent {
            Some(parent) if self.modules[place].inline => self.with_file(parent),
            _ => place,
        }
    }

    /// The files of its modules, once each.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.modules.iter().filter(|module| !module.inline).map(|module| module.file.as_path())
    }

    pub(crate) fn is_below(&self, place: ModuleIndex, ancestor: ModuleIndex) -> bool {
        self.modules[place].parent.is_some_and(|parent| parent == ancestor || self.is_below(parent, ancestor))
    }
}

fn unraw(name: &syn::Ident) -> String {
    name.to_string().trim_start_matches("r#").to_owned()
}

/// What an item defines, and whether it is a type.
fn defined(item: &Item) -> Option<(&syn::Ident, bool)> {
    match item {
        Item::Struct(item) => Some((&item.ident, true)),
        Item::Enum(item) => Some((&item.ident, true)),
        Item::Union(item) => Some((&item.ident, true)),
        Item::Trait(item) => Some((&item.ident, true)),
        Item::TraitAlias(item) => Some((&item.ident, true)),
        Item::Type(item) => Some((&item.ident, true)),
        Item::Fn(item) => Some((&item.sig.ident, false)),
        Item::Const(item) if item.ident != "_" => Some((&item.ident, false)),
        Item::Static(item) => Some((&item.ident, false)),
        Item::Macro(item) => item.ident.as_ref().map(|name| (name, false)),
        _ => None,
    }
}

/// The documentation of a type or function that is declared with `pub`.
fn public_docs(item: &Item) -> Option<String> {
    let visibility = match item {
        Item::Struct(item) => &item.vis,
        Item::Enum(item) => &item.vis,
        Item::Union(item) => &item.vis,
        Item::Trait(item) => &item.vis,
        Item::Type(item) => &item.vis,
        Item::Fn(item) => &item.vis,
        _ => return None,
    };
    is_public(visibility, attributes(item)).then(|| docs(attributes(item)))
}

/// `::name` is another crate's, even if this one has a module `name`: its first segment is empty.
fn before_the_first(has_leading_colon: bool) -> Vec<String> {
    if has_leading_colon { vec![String::new()] } else { Vec::new() }
}

/// Collects what a module's items import and mention.
struct ItemReader<'a> {
    module: &'a mut Module,
}

impl ItemReader<'_> {
    fn path(&mut self, line: usize, segments: Vec<String>) {
        if segments.len() > 1 {
            self.module.paths.push(Mention { line, what: segments });
        }
    }

    fn use_tree(&mut self, tree: &UseTree, before: &[String], reexport: bool, public_docs: Option<&str>) {
        let mut add = |line: usize, path: Vec<String>, name: Option<String>, glob: bool| {
            let public_docs = public_docs.map(str::to_owned);
            self.module
                .uses
                .push(Mention { line, what: UseItem { path, name, glob, reexport, public_docs } });
        };
        match tree {
            UseTree::Path(path) => {
                let before = [before, &[unraw(&path.ident)]].concat();
                self.use_tree(&path.tree, &before, reexport, public_docs);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(tree, before, reexport, public_docs);
                }
            }
            UseTree::Glob(star) => add(star.star_token.spans[0].start().line, before.to_vec(), None, true),
            UseTree::Name(name) if name.ident == "self" => {
                add(name.ident.span().start().line, before.to_vec(), before.last().cloned(), false);
            }
            UseTree::Name(name) => {
                let path = [before, &[unraw(&name.ident)]].concat();
                add(name.ident.span().start().line, path, Some(unraw(&name.ident)), false);
            }
            UseTree::Rename(name) => {
                let mut path = before.to_vec();
                if name.ident != "self" {
                    path.push(unraw(&name.ident));
                }
                let given = Some(unraw(&name.rename)).filter(|given| given != "_");
                add(name.ident.span().start().line, path, given, false);
            }
        }
    }

    /// The paths in the words of a macro's call or definition, or of an attribute.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match &token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(name) if colons == 2 && !path.is_empty() => path.push(unraw(name)),
                TokenTree::Ident(name) => {
                    let before = std::mem::replace(&mut path, vec![unraw(name)]);
                    self.path(line, before);
                    line = name.span().start().line;
                }
                TokenTree::Group(group) => {
                    let before = std::mem::take(&mut path);
                    // `foo::{a, b}` inside a macro is a `use`, which is rare enough to be read as `foo`.
                    if group.delimiter() == Delimiter::Brace && colons == 2 {
                        self.path(line, [before.as_slice(), &["*".to_owned()]].concat());
                    } else {
                        self.path(line, before);
                    }
                    self.tokens(group.stream());
                }
                _ => {
                    let before = std::mem::take(&mut path);
                    self.path(line, before);
                }
            }
            colons = 0;
        }
        self.path(line, path);
    }
}

impl<'ast> Visit<'ast> for ItemReader<'_> {
    // Items inside functions too.
    fn visit_item(&mut self, item: &'ast Item) {
        if !only_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !only_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !only_for_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let before = before_the_first(item.leading_colon.is_some());
        let public_docs = is_public(&item.vis, &item.attrs).then(|| docs(&item.attrs));
        let reexport = !matches!(item.vis, Visibility::Inherited);
        self.use_tree(&item.tree, &before, reexport, public_docs.as_deref());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut segments = before_the_first(path.leading_colon.is_some());
        segments.extend(path.segments.iter().map(|segment| unraw(&segment.ident)));
        let line = path.segments.first().map_or(0, |segment| segment.ident.span().start().line);
        self.path(line, segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    // `pub(super)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    // #[serde(default = "crate::x::y")], #[arg(value_parser = super::parse)]
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let Meta::List(list) = &attribute.meta else { return };
        self.tokens(list.tokens.clone());
        for token in list.tokens.clone() {
            let TokenTree::Literal(literal) = token else { continue };
            let line = literal.span().start().line;
            let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) else { continue };
            let Ok(path) = text.parse::<syn::Path>() else { continue };
            self.path(line, path.segments.iter().map(|segment| unraw(&segment.ident)).collect());
        }
    }
}
