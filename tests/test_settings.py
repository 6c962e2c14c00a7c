"""Where settings come from, what they may be, and that all problems are named at once."""

import pytest

from engine.launch import launch, parse
from engine.settings import Settings, fields
from engine.systems import all_of_them, resolve, system_of, systems
from formats.files import BadInput
from pipeline import train_model
from pretrain import SYSTEM, Cfg, WSCHSettings


def settings(dataset, options=None, **form):
    return resolve({"data_set_config": str(dataset.path), **form}, options or {})


class TestPrecedence:
    def test_json_over_published(self, dataset):
        found = settings(dataset)
        assert (found.lr, found.hashcode_size, found.cfg.n_clusters) == (1e-3, 16, 5)
        assert (found.cfg.a, found.seed) == (0.02, 3346)

    def test_form_over_json(self, dataset):
        found = settings(dataset, lr=0.5, cfg={"n_clusters": 7, "a": None})
        assert (found.lr, found.cfg.n_clusters, found.cfg.a) == (0.5, 7, 0.02)

    def test_option_over_form(self, dataset):
        options = parse(["--lr", "3e-4", "--cfg.n_clusters", "9", "--max_iter", "1", "2"], {}, SYSTEM)
        found = settings(dataset, options, lr=0.5, cfg={"n_clusters": 7})
        assert (found.lr, found.cfg.n_clusters, found.max_iter) == (3e-4, 9, (1, 2))

    def test_published_values(self, dataset):
        dataset.change(run={}, bth={}, max_frames=25)
        dataset.change(conmh={})
        wsch, bth, conmh = (settings(dataset, stage=stage) for stage in ("train", "bth.train", "conmh.train"))
        assert (wsch.max_iter, wsch.lr, wsch.batch_size, wsch.hidden_size) == ((100, 300), 1e-4, 128, 1024)
        assert (wsch.cfg.b, wsch.cfg.clus_temperature, wsch.cfg.temperature, wsch.cfg.tau_plus) == (
            1.0,
            0.2,
            0.5,
            0.1,
        )
        assert (wsch.cfg.n_clusters, wsch.cfg.p1, wsch.cfg.p2, wsch.hashcode_size) == (800, 0.9, 0.6, 64)
        assert (bth.max_iter, bth.lr, bth.batch_size, bth.hidden_size) == ((56, 56), 3e-4, 256, 256)
        assert (bth.bth.n_anchors, bth.bth.mask_weight, bth.bth.cluster_weight) == (2000, 0.92, 0.8)
        assert (conmh.max_iter, conmh.lr, conmh.batch_size) == (800, 1e-4, 512)
        assert (conmh.hidden_size, conmh.decoder_size, conmh.hashcode_size) == (256, 192, 64)
        own = conmh.conmh
        assert (own.p, own.a, own.temperature, own.tau_plus) == (0.75, 1.0, 0.5, 0.1)
        assert (own.n_blocks, own.n_heads, own.decoder_blocks, own.decoder_heads) == (12, 6, 2, 3)
        assert (own.lr_decay, own.lr_decay_epochs, own.lr_min) == (0.9, 20, 1e-5)

    def test_every_system_reads_its_own_block(self, dataset):
        found = settings(dataset, stage="bth.train")
        assert (found.hidden_size, found.bth.n_anchors, found.lr) == (16, 8, 3e-4)
        found = settings(dataset, stage="conmh.train")
        assert (found.max_iter, found.decoder_size, found.conmh.n_heads, found.conmh.p) == (2, 12, 3, 0.5)


class TestOptions:
    @pytest.mark.parametrize(
        ("stage", "option", "meant"),
        [
            ("train", "--epochs", "--max_iter"),
            ("bth.train", "--num_epochs", "--max_iter"),
            ("train", "--bits", "--hashcode_size"),
            ("tools.encode", "--nbits", "--hashcode_size"),
            ("train", "--batch", "--batch_size"),
            ("train", "--bs", "--batch_size"),
            ("bth.train", "--learning_rate", "--lr"),
            ("train", "--learning-rate", "--lr"),
            ("test", "--gpu", "--device"),
            ("train", "--data", "--data_set_config"),
            ("train", "--dataset", "--data_set_config"),
            ("tools.extract", "--data", "--videos"),
            ("train", "--output", "--result_weight_dir"),
            ("train", "--checkpoint", "--weight_path"),
            ("train", "--workers", "--num_workers"),
            ("train", "--amp", "--precision"),
            ("train", "--n_clusters", "--cfg.n_clusters"),
            ("bth.train", "--anchors", "--bth.anchors"),
            ("conmh.train", "--epochs", "--max_iter"),
            ("conmh.train", "--depth", "--conmh.n_blocks"),
            ("conmh.train", "--heads", "--conmh.n_heads"),
            ("conmh.train", "--mask_ratio", "--conmh.p"),
            ("conmh.train", "--conmh.depth", "--conmh.n_blocks"),
            ("train", "--hashcode-size", "--hashcode_size"),
            ("train", "--resum", "--resume"),
            ("train", "--mode", "--stage"),
            ("tools.encode", "--bs", "--batch_size"),
            ("tools.extract", "--model", "--backbone"),
            ("tools.extract", "--output", "--features_dir"),
            ("tools.encode", "--result_dir", "--result_code_dir"),
        ],
    )
    def test_words_that_people_try(self, stage, option, meant):
        with pytest.raises(BadInput) as error:
            parse([option, "3"], {}, system_of(stage))
        assert str(error.value).startswith(
            f"unknown key '{option}' (did you mean '{meant}'?) (the settings of"
        )

    @pytest.mark.parametrize(
        "option",
        ["--weight_decay", "--dropout", "--train", "--loss", "--steps", "--iters", "--n_classes", "--cut",
         "--image_size", "--n_videos", "--num_frames", "--features", "--version", "--no-tf32"],
    )  # fmt: skip
    def test_no_hint_is_better_than_a_wrong_one(self, option):
        with pytest.raises(BadInput, match=f"unknown key '{option}' .the settings of WSCH"):
            parse([option, "3"], {}, SYSTEM)

    def test_such_a_word_means_one_setting(self):
        for system in all_of_them():
            known = fields(system.settings)
            shared = [name for name in known if name in fields(Settings)]
            for names in (shared, known.keys() - shared):  # a stage's own meaning of a word goes first
                words = [word for name in names for word in known[name].metadata["also"]]
                assert len(words) == len({*words})
                assert not {*words} & known.keys()

    def test_in_the_form_too(self, dataset):
        with pytest.raises(BadInput, match=r"run.py: unknown key 'epochs' .did you mean 'max_iter'"):
            settings(dataset, epochs=3)

    @pytest.mark.parametrize("text", ["true", "True", None])
    def test_true_may_be_left_out(self, text):
        arguments = ["--tf32", *([text] if text else []), "--seed", "5", "--exclude_self"]
        assert parse(arguments, {}, SYSTEM) == {"tf32": True, "seed": 5, "exclude_self": True}
        assert parse(["--tf32", "false"], {}, SYSTEM) == {"tf32": False}

    @pytest.mark.parametrize(
        ("text", "number"),
        [(".5", 0.5), ("5.", 5.0), ("1e-4", 1e-4), ("1E3", 1000.0), ("+3", 3), ("-.5", -0.5), ("007", 7)],
    )
    def test_numbers(self, text, number):
        assert parse(["--lr", text], {}, SYSTEM) == {"lr": number}

    @pytest.mark.parametrize("text", ["1,5", "null", "[1]", "0x10", "nan", "inf", "9" * 5000])
    def test_no_numbers(self, dataset, text):
        with pytest.raises(BadInput, match="option 'lr' must be"):
            settings(dataset, parse(["--lr", text], {}, SYSTEM))


class TestProblems:
    def test_all_at_once(self, dataset):
        dataset.change(run={"lr": -1, "cfg": {"p3": 0.1}})
        with pytest.raises(BadInput) as error:
            settings(dataset, {"seed": "x"}, batch_size=0, hidden_sizes=3)
        for part in (
            "'lr' must be above 0, found -1",
            "unknown key 'cfg.p3' (did you mean 'cfg.p",
            "option 'seed'",
            "'batch_size' must be 1 or more, found 0",
            "unknown key 'hidden_sizes'",
        ):
            assert part in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("cfg.p1", 1.0, "0 <= p1 < 1"),
            ("cfg.p1", 0.01, "hides 0 of 6 frames"),
            ("hidden_size", 96, "a multiple of 64 (the encoder's width, not the feature's 24)"),
            ("decoder_size", 30, "a multiple of 4"),
            ("max_iter", [1], "must be two whole numbers, 0 or more, found"),
            ("max_iter", [1, 2.5], "must be two whole numbers, 0 or more, found"),
            ("hashcode_size", 16.5, "1 or more"),
            ("tf32", 1, "true or false"),
            ("device", "gpu", "auto, cpu, cuda, cuda:N (GPU number N, from 0) or mps"),
            ("device", "cuda:", "cuda:N"),
            ("device", "cpu:1", "cuda:N"),
            ("precision", "float16", "float32 or bfloat16"),
            ("lr", float("nan"), "above 0"),
            ("cfg.tau_plus", True, "tau_plus"),
            ("stage", "tests", "one of pipeline"),
        ],
    )
    def test_each(self, dataset, name, value, expected):
        with pytest.raises(BadInput) as error:
            settings(dataset, {name: value})
        assert expected in str(error.value)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (
                {"hidden_size": 15},
                "must be an even number and at least 'conmh.n_heads' = 3 (a width of the network)",
            ),
            ({"decoder_size": 13}, "'decoder_size' must be an even number and at least"),
            ({"conmh.n_heads": 17}, "'hidden_size' must be an even number and at least 'conmh.n_heads' = 17"),
            ({"conmh.decoder_heads": 13}, "'decoder_size' must be an even number and at least 'conmh.deco"),
            ({"conmh.p": 0.1}, "'conmh.p' = 0.1 hides 0 of 6 frames"),
            ({"conmh.p": 1.0}, "0 <= p < 1"),
            ({"batch_size": 1}, "'batch_size' must be 2 or more unless 'conmh.a' is 0, found 1"),
            ({"max_iter": [1, 2]}, "'max_iter' must be a whole number, 0 or more, found [1, 2]"),
            ({"conmh.n_blocks": 0}, "'conmh.n_blocks' must be 1 or more, found 0"),
            ({"conmh.lr_decay": 1.5}, "0 < lr_decay <= 1"),
        ],
    )
    def test_of_conmh(self, dataset, options, expected):
        with pytest.raises(BadInput) as error:
            settings(dataset, {"stage": "conmh.train", **options})
        assert expected in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_form_of_wrong_types(self, dataset, tmp_path, monkeypatch, capsys):
        with pytest.raises(BadInput, match="run.py: 'cfg' must be an object, found 3"):
            settings(dataset, parse([], {"cfg": 3}, SYSTEM), cfg=3)
        monkeypatch.chdir(tmp_path)
        assert launch(train_model, {"result_log_dir": 3}, ["--resume"]) == 2
        assert capsys.readouterr().err == "error: --resume: no unfinished run in 3\n"

    def test_every_setting_is_explained(self):
        for system in systems():
            assert all(item.metadata["description"] for item in fields(system.settings).values())


def test_differences_name_both_values():
    then = WSCHSettings().as_dict()
    now = WSCHSettings(lr=0.5, memory="disk", num_workers=0, cfg=Cfg(a=1.0))
    changed = ["cfg.a was 0.02, is 1.0", "lr was 0.0001, is 0.5"]
    assert now.changes_since(then) == changed
    del then["seed"], then["cfg"]["b"]  # an older version's record: it had the default
    assert now.changes_since(then | {"bth": {"n_anchors": 7}}) == changed
