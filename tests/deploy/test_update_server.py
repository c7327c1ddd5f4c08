"""Updates from a web server: fetched, resumed, applied; and mirrors that show what is old, mixed or made up."""

import datetime
import json
import shutil

import pytest
from updating import applied, digest, install, saved, small, tuned, update

import mobilenets
from mobilenets import web
from mobilenets.deploy.update import installed, keys, package, repository
from mobilenets.deploy.update.installed import Installation
from mobilenets.deploy.update.lock import alone
from mobilenets.deploy.update.pull import pull
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle

pytest.importorskip("tuf")
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three versions of a network, the updates between them and a whole third, and keys: release, refresh, other."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("release", "refresh", "other"):
        keys.make(folder / name)
    key = keys.signing(folder / "release")
    first, second = saved(folder)
    third = folder / "third"
    tuned(small(), seed=3, only="classifier").save(third)
    update(first, second, folder / "2.mnu", version=2, key=key)
    update(second, third, folder / "3.mnu", version=3, key=key)
    update(first, third, folder / "whole.mnu", version=3, key=key, whole=True)
    return folder


@pytest.fixture
def phone(made, tmp_path):
    return install(made / "old", tmp_path / "phone")


def serve_updates(made, folder, *names, key="release", fresh=None, days=30):
    updates = [package.read(made / n) for n in names]
    signing = keys.signing(made / key) if key else None
    return repository.serve(folder, updates, signing, keys.signing(made / fresh) if fresh else None, days)


def pulled(made, server, phone, key="release.pub", **options):
    return pull(server.url, Installation(phone), keys.verifying(made / key) if key else None, **options)


def refused(made, server, phone, match, key=None, **options):
    before = digest(phone)
    with pytest.raises(UserError, match=match) as e:
        pulled(made, server, phone, key, **options)
    assert "\n" not in str(e.value)
    assert digest(phone) == before


@pytest.fixture
def clock(monkeypatch):
    """`clock(days)`: the time is so many days after now, for us and for python-tuf."""
    real = datetime.datetime

    def at(days):
        class Then(real):
            @classmethod
            def now(cls, tz=None):
                return real.now(tz) + days * DAY

        monkeypatch.setattr(package, "now", lambda: Then.now(datetime.UTC).replace(microsecond=0))
        from tuf.ngclient._internal import trusted_metadata_set

        monkeypatch.setattr(trusted_metadata_set.datetime, "datetime", Then)

    yield at
    monkeypatch.undo()


# ---- what is new is fetched ----------------------------------------------------------------------------------------


def test_one_after_another(made, serve, phone, tmp_path):
    folder = tmp_path / "updates"
    serve_updates(made, folder, "2.mnu")
    server = serve(folder)
    (step,) = pulled(made, server, phone)
    assert (step.head.version, digest(phone)) == (2, digest(made / "new"))
    assert pulled(made, server, phone, None) == []  # the key is remembered
    serve_updates(made, folder, "3.mnu")
    assert [s.head.version for s in pulled(made, server, phone, None)] == [3]
    assert digest(phone) == digest(made / "third")
    Installation(phone).roll_back()
    assert pulled(made, server, phone, None) == []  # what was taken back isn't brought again
    assert not [*phone.glob("*.mnu")]


def test_several_at_once_and_a_whole_one(made, serve, phone, tmp_path):
    serve_updates(made, tmp_path / "updates", "3.mnu", "2.mnu")
    server = serve(tmp_path / "updates")
    assert [s.head.version for s in pulled(made, server, phone)] == [2, 3]
    strange = tmp_path / "strange"
    tuned(small(), seed=9).save(strange)
    assert pulled(made, server, strange) == []
    serve_updates(made, tmp_path / "updates", "whole.mnu")
    assert [s.head.kind for s in pulled(made, server, strange)] == ["full"]
    assert digest(strange) == digest(made / "third")


def test_a_file(made, serve, tmp_path):
    Bundle.load(made / "old").save(tmp_path / "a.mnz")
    Bundle.load(made / "new").save(tmp_path / "b.mnz")
    update(tmp_path / "a.mnz", tmp_path / "b.mnz", tmp_path / "u.mnu", key=keys.signing(made / "release"))
    repository.serve(tmp_path / "updates", [package.read(tmp_path / "u.mnu")], keys.signing(made / "release"), None, 1)
    pulled(made, serve(tmp_path / "updates"), tmp_path / "a.mnz")
    assert digest(tmp_path / "a.mnz") == digest(tmp_path / "b.mnz")


def test_a_download_that_breaks_goes_on(made, serve, phone, tmp_path, monkeypatch):
    """In a later call: the first gives up where the line broke."""
    serve_updates(made, tmp_path / "updates", "2.mnu")
    server = serve(tmp_path / "updates")
    (file,) = (tmp_path / "updates" / "targets").iterdir()
    name = f"targets/{file.name}"
    server.cut[name] = 700
    with monkeypatch.context() as patch:
        patch.setattr(web, "ATTEMPTS", 1)
        refused(made, server, phone, "can't be fetched", "release.pub")
    assert [p.stat().st_size for p in phone.glob("*.part")] == [700]
    (step,) = pulled(made, server, phone, None)
    assert step.head.version == 2
    assert [at for n, at in server.asked if n == name] == [0, 700]


# ---- mirrors that lie ----------------------------------------------------------------------------------------------


def test_an_update_that_was_interrupted_is_pulled_again(made, serve, tmp_path, monkeypatch):
    """What is known of a file isn't ahead of the file."""
    file, site = tmp_path / "a.mnz", tmp_path / "site"
    Bundle.load(made / "old").save(file)
    Bundle.load(made / "new").save(tmp_path / "b.mnz")
    update(file, tmp_path / "b.mnz", tmp_path / "u.mnu", version=2, key=keys.signing(made / "release"))
    repository.serve(site, [package.read(tmp_path / "u.mnu")], keys.signing(made / "release"), None, 1)
    server = serve(site)
    with monkeypatch.context() as patch:
        patch.setattr(installed, "_copy", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(UserError, match="disk is full"):
            pulled(made, server, file)
    assert [step.head.version for step in pulled(made, server, file)] == [2]
    assert pulled(made, server, file) == []


def test_the_newest_network_that_was_put_there_by_hand_is_not_pulled(made, serve, tmp_path):
    server = serve(tmp_path / "site")
    serve_updates(made, tmp_path / "site", "whole.mnu")
    assert pulled(made, server, install(made / "third", tmp_path / "phone")) == []


def test_another_key(made, serve, phone, tmp_path):
    serve_updates(made, tmp_path / "updates", key="other")
    server = serve(tmp_path / "updates")
    refused(made, server, phone, "say by --verify which key it must be signed with")
    refused(made, server, phone, r"its index isn't signed by \w{16}; nothing was changed", "release.pub")
    assert not (phone / "index" / "root_history").exists()


def test_an_update_that_was_changed(made, serve, phone, tmp_path):
    serve_updates(made, tmp_path / "updates", "2.mnu")
    server = serve(tmp_path / "updates")
    (file,) = (tmp_path / "updates" / "targets").iterdir()
    server.wrong.add(f"targets/{file.name}")
    refused(made, server, phone, "not the update that the index names; nothing was changed", "release.pub")
    server.wrong.clear()
    assert len(pulled(made, server, phone, None)) == 1
    file.write_bytes(file.read_bytes() * 2)


def test_an_index_that_was_changed(made, serve, phone, tmp_path):
    serve_updates(made, tmp_path / "updates", "2.mnu")
    server = serve(tmp_path / "updates")
    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
        path = tmp_path / "updates" / "metadata" / name
        good = path.read_text()
        d = json.loads(good)
        d["signed"]["expires"] = "2099-01-01T00:00:00Z"
        path.write_text(json.dumps(d))
        refused(made, server, phone, "its index isn't signed by the key that it should be", "release.pub")
        path.write_text("{")
        refused(made, server, phone, "its index doesn't hang together", "release.pub")
        path.write_text(good)
    assert len(pulled(made, server, phone)) == 1


def test_an_older_index(made, serve, phone, tmp_path):
    folder = tmp_path / "updates"
    serve_updates(made, folder)
    shutil.copytree(folder, tmp_path / "stolen")
    serve_updates(made, folder, "2.mnu")
    server = serve(folder)
    pulled(made, server, phone)
    refused(made, serve(tmp_path / "stolen"), phone, "its index is older than one that was seen before")


def test_a_mix_of_versions(made, serve, phone, tmp_path):
    folder = tmp_path / "updates"
    serve_updates(made, folder, "2.mnu")
    for path in (folder / "metadata").glob("*.snapshot.json"):
        old = path.read_bytes()
    serve_updates(made, folder, "3.mnu")
    newest = sorted((folder / "metadata").glob("*.snapshot.json"))[-1]
    newest.write_bytes(old)  # in the place of the one that the timestamp names
    refused(made, serve(folder), phone, "its index is older|doesn't hang together", "release.pub")


def test_an_index_that_ran_out(made, serve, phone, tmp_path, clock):
    serve_updates(made, tmp_path / "updates", "2.mnu", days=30)
    server = serve(tmp_path / "updates")
    clock(31)
    refused(made, server, phone, "its index ran out: nobody has signed it anew", "release.pub")
    serve_updates(made, tmp_path / "updates")
    assert len(pulled(made, server, phone)) == 1


def test_a_clock_that_was_set_back(made, serve, phone, tmp_path, clock):
    folder = tmp_path / "updates"
    serve_updates(made, folder)
    server = serve(folder)
    clock(-2)
    refused(made, server, phone, "which is before the index was signed", "release.pub")
    clock(20)
    assert pulled(made, server, phone) == []
    clock(10)
    refused(made, server, phone, "which is before an index was last read, .*--trust-clock if it was wrong then")
    assert pulled(made, server, phone, None, trust_clock=True) == []
    assert pulled(made, server, phone, None) == []


# ---- the folder ----------------------------------------------------------------------------------------------------


def test_a_key_for_the_timestamp_alone(made, serve, phone, tmp_path, clock):
    folder = tmp_path / "updates"
    serve_updates(made, folder, "2.mnu", fresh="refresh", days=1)
    clock(2)
    server = serve(folder)
    refused(made, server, phone, "ran out", "release.pub")
    serve_updates(made, folder, key=None, fresh="refresh", days=1)
    assert len(pulled(made, server, phone)) == 1
    with pytest.raises(UserError, match="adding updates needs the key that signs them"):
        serve_updates(made, folder, "3.mnu", key=None, fresh="refresh")
    with pytest.raises(UserError, match="signed by another key than that of --sign"):
        serve_updates(made, folder, key="other", fresh="refresh")
    with pytest.raises(UserError, match="signed by another key than that of --refresh-key"):
        serve_updates(made, folder, key="release")
    with pytest.raises(UserError, match="--sign KEY or --refresh-key KEY"):
        serve_updates(made, folder, key=None)
    with pytest.raises(UserError, match="a new index needs the key that signs it"):
        serve_updates(made, tmp_path / "other", key=None)


def test_what_is_signed_for_a_year_is_signed_anew(made, serve, phone, tmp_path, clock):
    folder = tmp_path / "updates"
    serve_updates(made, folder, "2.mnu")
    for days in (200, 400, 600):
        clock(days)
        serve_updates(made, folder)
    assert (folder / "metadata" / "4.root.json").exists()
    assert len(pulled(made, serve(folder), phone)) == 1


def test_versions_in_a_folder_only_go_up(made, tmp_path):
    folder = tmp_path / "updates"
    serve_updates(made, folder, "2.mnu")
    with pytest.raises(UserError, match="versions only go up"):
        serve_updates(made, folder, "2.mnu")
    update(made / "old", made / "third", tmp_path / "4.mnu", version=4, key=keys.signing(made / "other"))
    with pytest.raises(UserError, match="another key than the folder's"):
        repository.serve(folder, [package.read(tmp_path / "4.mnu")], keys.signing(made / "release"), None, 1)
    (folder / "metadata" / "timestamp.json").write_text("{")
    with pytest.raises(UserError, match="not readable as an index"):
        serve_updates(made, folder)


ROLES = ("timestamp.json", "snapshot.json", "targets.json", "root.json")


@pytest.mark.parametrize(("what", "by"), [(a, b) for a in ROLES for b in (*ROLES, "") if a != b])
def test_files_of_an_index_in_the_place_of_others(made, tmp_path, what, by):
    folder = tmp_path / "updates"
    serve_updates(made, folder, "2.mnu")
    index = {role: max((folder / "metadata").glob(f"*{role}")) for role in ROLES}
    index[what].write_bytes(index[by].read_bytes() if by else b'{"signatures": [], "signed": {}}')
    with pytest.raises(UserError, match="not readable as an index"):
        serve_updates(made, folder, "3.mnu")


def test_two_serve_at_once(made, tmp_path):
    folder = tmp_path / "updates"
    serve_updates(made, folder, "2.mnu")
    with alone(folder / repository.LOCK, folder), pytest.raises(UserError, match="by another process"):
        serve_updates(made, folder, "3.mnu")
    assert len(serve_updates(made, folder, "3.mnu")[0]) == 2


@pytest.mark.parametrize("days", [0, 366, 10**11])
def test_days_that_an_index_can_not_be_fresh(made, tmp_path, days):
    with pytest.raises(UserError, match="days must be 1 to 365"):
        mobilenets.serve_updates(tmp_path / "updates", made / "2.mnu", sign=made / "release", days=days)
    assert not (tmp_path / "updates").exists()


def test_a_time_that_is_none(made, serve, phone, tmp_path):
    serve_updates(made, tmp_path / "updates", "2.mnu")
    server = serve(tmp_path / "updates")
    pulled(made, server, phone)
    pointer = phone / "installed.json"
    for seen in ("then", "2026-01-01"):
        pointer.write_text(json.dumps({**json.loads(pointer.read_bytes()), "seen": seen}))
        refused(made, server, phone, "should be a time")


def test_addresses_and_a_key_from_before(made, serve, phone, tmp_path):
    with pytest.raises(UserError, match="not an address of the web"):
        pull("ftp://x", Installation(phone), None)
    applied(phone, made / "2.mnu", keys.verifying(made / "release.pub"))
    serve_updates(made, tmp_path / "updates", "3.mnu")
    assert len(pulled(made, serve(tmp_path / "updates"), phone, None)) == 1
    refused(made, serve(tmp_path / "none"), phone, "404")


def test_the_command_line(made, serve, command, tmp_path):
    key, folder = tmp_path / "k", tmp_path / "updates"
    u = tmp_path / "u.mnu"
    assert command("update", "key", key).code == 0
    ran = command("update", "make", made / "old", made / "new", "--out", u, "--sign", key, "--number", 7)
    assert ran.code == 0, ran.err
    assert "layers   classifier" in ran.out
    shown = command("update", "show", u, "--verify", f"{key}.pub", "--json").json
    assert (shown["version"], shown["verified"], shown["kind"]) == (7, True, "delta")
    assert "name of an update ends in .mnu" in command("update", "make", made / "old", made / "new", "--out", key).line
    assert command("update", "show", u, "--verify", made / "other.pub").line.endswith("nothing was changed")
    assert "1 update" in command("update", "serve", folder, u, "--sign", key).out
    phone = install(made / "old", tmp_path / "phone")
    line = ("update", "pull", serve(folder).url, phone)
    assert "--verify" in command(*line).line
    assert "-> 7" in command(*line, "--verify", f"{key}.pub").out
    assert "the newest version already" in " ".join(command(*line).out.split())
    assert command("show", phone).code == 0
    assert "is version 0 again" in " ".join(command("update", "rollback", phone).out.split())
    assert "nothing newer than version 7, which" in " ".join(command(*line).out.split())
    assert command("update", "serve", folder, "--sign", key, "--days", 0).line.endswith("not 0")
    assert command("update", "serve", folder, "--sign", key, "--json").json["updates"]
