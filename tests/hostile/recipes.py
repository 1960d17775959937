"""Recipes that cannot be read or run, and changes on the command line."""

from __future__ import annotations

from hostile.making import ESC, GOOD, Row, fifo, file, nothing

# Recipes: `swa train bad.yaml`.


def recipe(name: str, text: str | bytes, piece: str) -> Row:
    return Row(f"recipe-{name}", ["train", "bad.yaml"], piece, file("bad.yaml", text))


def good_but(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


RECIPES = [
    recipe("empty", "", "the recipe is empty"),
    recipe("blank", " \n\n# nothing\n", "the recipe is empty"),
    recipe("null", "~", "the recipe is empty"),
    recipe("list", "- a\n- b\n", "the recipe has no keys"),
    recipe("number", "42", "the recipe has no keys"),
    recipe("binary", bytes(range(128, 256)), "is not text in UTF-8 (line 1)"),
    recipe("latin-1", b"name: caf\xe9\n" + GOOD.encode(), "is not text in UTF-8 (line 1)"),
    recipe("utf-16", GOOD.encode("utf-16"), "is not text in UTF-8"),
    recipe("nul", GOOD + "\0", "is not a text file"),
    recipe("huge", "#" * ((1 << 20) + 1), "is larger than any recipe"),
    recipe("many-keys", "".join(f"k{i}: 1\n" for i in range(6000)), "is longer than any recipe"),
    recipe("deep-lists", "[" * 100_000, "is nested too deeply"),
    recipe("deep-sections", "{a: " * 100_000, "is nested too deeply"),
    recipe("alias-bomb", "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(99)), "are not read"),
    recipe("merge-bomb", "a: &a {}\n" + "b: {<<: [*a, *a]}\n" * 99, "merge keys (`<<`) are not read"),
    recipe("loop", "a: &a\n  b: *a\n", "aliases (`*a`) are not read"),
    recipe(
        "python-tag",
        good_but("good", '!!python/object/apply:os.system ["touch trap"]'),
        "python/object/apply:os.system`) are not read",
    ),
    recipe("python-name", good_but("0.1", "!!python/name:os.system ''"), "python/name:os.system`) are not read"),
    recipe("tag", good_but("0.1", "!!float 0.1"), "are not read"),
    recipe("duplicate", GOOD + "seed: 1\nseed: 2\n", "duplicate key, it is already in line 8"),
    recipe("duplicate-section", GOOD + "train: {epochs: 3}\n", "duplicate key"),
    recipe("documents", GOOD + "---\n" + GOOD, "a second document begins here"),
    recipe("unclosed", good_but("{lr: 0.1}", "{lr: 0.1"), "1 problem in bad.yaml"),
    recipe("tabs", "train:\n\tepochs: 1\n", "a tab indents this line"),
    recipe("no-such-character", GOOD + 'task: "\\UFFFFFFFF"\n', "escape of no character"),
    recipe("escapes-raw", good_but("good", ESC), "an invisible control character"),
    recipe("escapes-quoted", good_but("good", '"\\e[31m\\e]0;x\\a"'), "]0;x�` is not possible here"),
    recipe("escapes-in-key", GOOD + '"\\e[2J\\e[H": 1\n', "unknown key"),
    recipe("other-folder", good_but("good", "../../x"), "`../../x` is not possible here"),
    recipe("hidden-folder", good_but("good", ".."), "`..` is not possible here"),
    recipe("absolute-folder", good_but("good", "/tmp/x"), "`/tmp/x` is not possible here"),
    recipe("truth-for-text", good_but("digits", "yes"), "is not text in YAML"),
    recipe("section-is-value", good_but("{lr: 0.1}", "0.1"), "is a value, but `optimizer` is a section"),
    recipe("section-is-list", good_but("{lr: 0.1}", "[0.1]"), "a list is given, but `optimizer` is a section"),
    recipe("value-is-section", good_but("0.1", "{a: 1}"), "takes a single value, not a section"),
    recipe("value-is-missing", good_but("0.1", ""), "optimizer.lr: has no value"),
    recipe("number-key", GOOD + "1: 2\n", "the key `1` is not text"),
    recipe("list-key", GOOD + "? [a]\n: 2\n", "a key is not text"),
    recipe("octal", good_but("epochs: 2", "epochs: 012"), "`012` may be 12 or, as octal, 10"),
    recipe("average-as-path", good_but("{swag:", '{"../x":'), "cannot name an average"),
    recipe("average-as-checkpoint", good_but("{swag:", "{last:"), "cannot name an average"),
    recipe("average-as-raw-weights", good_but("{swag:", "{last_bn:"), "cannot name an average"),
    recipe("average-as-worker", good_but("{swag:", "{worker-1_bn:"), "cannot name an average"),
    Row("recipe-missing", ["train", "bad.yaml"], "there is no such file", nothing),
    Row("recipe-close-name", ["train", "god.yaml"], "did you mean good.yaml?", nothing),
    Row("recipe-fifo", ["train", "bad.yaml"], "is no regular file", fifo("bad.yaml")),
    Row("recipe-directory", ["train", "run"], "is a folder", nothing),
    Row("recipe-device", ["train", "/dev/zero"], "is no regular file", nothing),
    Row("recipe-is-checkpoint", ["train", "swa.pt"], "is not text", nothing),
    Row("recipe-link-loop", ["train", "loop"], "cannot be read", lambda folder: (folder / "loop").symlink_to("loop")),
    Row("recipe-nul-in-path", ["train", "a\0b"], "cannot be read", nothing),
    Row("recipe-long-path", ["train", "a" * 5000], "cannot be read", nothing),
    Row("recipe-escapes-in-path", ["train", f"{ESC}.yaml"], "there is no such file", nothing),
]


# Changes: `swa train good.yaml KEY=VALUE`.


def change(name: str, word: str, piece: str) -> Row:
    return Row(f"change-{name}", ["train", "good.yaml", word], piece, nothing)


CHANGES = [
    change("no-equals", "optimizer.lr", "optimizer.lr: has no value"),
    change("second-recipe", "other.yaml", "has no value"),
    change("empty-word", "", "has no value"),
    change("empty-key", "=1", "is not a key"),
    change("dots", "..=1", "is not a key"),
    change("empty-value", "optimizer.lr=", "optimizer.lr: has no value"),
    change("unknown-key", "optimizer.momentun=0.9", "did you mean `optimizer.momentum`?"),
    change("unknown-section", "optimiser.lr=1", "did you mean `optimizer`?"),
    change("below-a-value", "optimizer.lr.x=1", "`optimizer.lr` is a value, not a section"),
    change("section-by-value", "optimizer=SGD", "is a value, but `optimizer` is a section"),
    change("value-by-section", "optimizer.lr={a: 1}", "takes a single value, not a section"),
    change("open-list", "optimizer.no_decay=[bias", "put the word in quotes for the shell"),
    change("alias", "model.args={a: &a [*a]}", "are not read"),
    change("tag", "model.args={a: !!python/name:os.system x}", "are not read"),
    change("deep", "model.args=" + "[" * 1000, "is nested too deeply"),
    change("many", f"model.args=[{'1,' * 9999}]", "is longer than any recipe"),
    change("nan-rate", "optimizer.lr=.nan", "`.nan` is not finite"),
    change("inf-rate", "optimizer.lr=.inf", "`.inf` is not finite"),
    change("huge-rate", "optimizer.lr=1e999", "is not finite"),
    change("negative-rate", "optimizer.lr=-1", "is below 0"),
    change("text-rate", "optimizer.lr=fast", "`fast` is not a number"),
    change("zero-epochs", "train.epochs=0", "is below 1"),
    change("negative-epochs", "train.epochs=-3", "is below 1"),
    change("half-epochs", "train.epochs=1.5", "is not a whole number"),
    change("too-long-epochs", "train.epochs=" + "9" * 30, "is too large"),
    change("endless-epochs", "train.epochs=" + "9" * 17, "train.epochs:"),
    change("negative-batch", "train.batch_size=-1", "is below 1"),
    change("batch-above-data", "train.batch_size=999999999", "is more than the"),
    change("negative-seed", "seed=-1", "is below 0"),
    change("huge-seed", "seed=" + "9" * 40, "is too large"),
    change("no-unit", "swa.start=50", "has no unit"),
    change("start-after-end", "swa.start=3ep", "after the end of the run"),
    change("start-above-all", "swa.start=101%", "is more than the whole run"),
    change("every-zero", "swa.every=0ep", "is no interval"),
    change("nothing-to-train", "dataset.val=999999", "leaves nothing to train"),
    change("no-test-digits", "dataset.args.test=0", "dataset.args.test: 0 is not a whole number from 1 to 1,796"),
    change("only-test-digits", "dataset.args.test=1797", "dataset.args.test: 1797 is not a whole number"),
    change("text-for-test-digits", "dataset.args.test=x", "dataset.args.test: 'x' is not a whole number"),
    change("all-validate", "dataset.val=100%", "is neither a share below 100% nor a count"),
    change("no-such-device", "train.device=cuda:99", "cuda:99 is not here"),
    change("device-of-no-kind", "train.device=tpu", "`tpu` is not possible here"),
    change("no-such-network", "model.name=resnet", "unknown network 'resnet'"),
    change("no-such-timm", "model={name: 'timm:resnet19'}", "timm has no network 'resnet19'"),
    change("timm-hub", "model={name: 'timm:hf-hub:x/y'}", "timm has no network 'hf-hub:x/y'"),
    change("timm-path", "model={name: 'timm:../x'}", "timm has no network '../x'"),
    change("timm-pretrained", "model={name: 'timm:resnet18', args: {pretrained: true}}", "from fresh weights"),
    change(
        "patches-of-an-image",
        "model={name: 'torchvision:vit_b_16', args: {image_size: 30}}",
        "torchvision:vit_b_16 refuses them: Input shape",
    ),
    change(
        "no-heads",
        "model={name: 'timm:test_vit', args: {num_heads: 0}}",
        "timm:test_vit refuses them: ZeroDivisionError",
    ),
    change(
        "negative-width",
        "model={name: 'timm:test_vit', args: {embed_dim: -8}}",
        "refuses them: Trying to create tensor with",
    ),
    change(
        "too-few-stages",
        "model={name: 'timm:test_convnext', args: {depths: [1]}}",
        "timm:test_convnext refuses them: IndexError",
    ),
    change(
        "block-as-text",
        "model={name: 'timm:test_resnet', args: {block: x}}",
        "timm:test_resnet refuses them: AttributeError",
    ),
    change("no-such-module", "model.name=no_such_module:Net", "cannot import no_such_module"),
    change("module-as-path", "model.name=../x:Net", "is not a name of a network"),
    change("no-network", "model.name=json:loads", "json:loads: missing a required argument"),
    change("no-such-argument", "model.args.depth=9", "unknown argument of convnet"),
    change("negative-width", "model.args.width=-4", "is not a whole number of at least 1"),
    change("endless-width", "model.args.width=" + "9" * 15, "model"),
    change("no-such-optimizer", "optimizer.name=SDG", "did you mean `SGD`?"),
    change("rank-of-one", "averages.swag.rank=1", "averages.swag.rank: `1` is below 2"),
    change("rank-endless", "averages.swag.rank=" + "9" * 30, "is too large"),
    change("diagonal-and-rank", "averages.swag.diagonal=true", "a diagonal swag keeps no deviations"),
    change("diagonal-text", "averages.swag.diagonal=maybe", "`maybe` is not a truth value"),
    change("decay-of-swag", "averages.swag.decay=0.9", "`decay` goes with `kind: ema`"),
    change("half-life-and-decay", "averages.e={kind: ema, decay: 0.9, half_life: 1ep}", "stands beside decay"),
    change("half-life-zero", "averages.e={kind: ema, half_life: 0step}", "0step is no time at all"),
    change("half-life-above-all", "averages.e={kind: ema, half_life: 101%}", "is more than the whole run"),
    change("optimizer-option", "optimizer.momentum=lots", "torch.optim.SGD refuses its options"),
    change("endless-threads", "train.threads=" + "9" * 15, "train.threads"),
    change("no-such-start", "train.init=bad.pt", "train.init: bad.pt: no such checkpoint"),
    change("start-is-folder", "train.init=run", "train.init: run: is no regular file"),
    change("start-is-recipe", "train.init=good.yaml", "train.init: good.yaml: cannot be read as a checkpoint"),
    change(
        "start-of-nothing", "train.init_weights=swa", "train.init_weights: there is no checkpoint to take them from"
    ),
    change("skip-of-nothing", "train.init_skip=[x]", "train.init_skip: there is no checkpoint to take them from"),
    change("escapes-in-start", f"train.init={ESC}", "no such checkpoint"),
    change("escapes", f"{ESC}=1", "unknown key"),
    change("escapes-in-value", f"model.name={ESC}", "unknown network"),
]
