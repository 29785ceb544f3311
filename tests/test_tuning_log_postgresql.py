"""A tuning log on a server, beyond what every log does (see `test_tuning_log`): it goes away, and several write."""

from __future__ import annotations

import sys
import threading

import pytest

from tests.postgresql import postgresql  # noqa: F401  a fixture
from tests.test_tuning_log import trial
from tvmcompress import tuning_log_database
from tvmcompress.errors import MissingDependencyError, UsageError
from tvmcompress.tuning_log import TuningLog, TuningLogError


def test_a_server_that_was_started_again(postgresql) -> None:  # noqa: F811
    with TuningLog.open(postgresql.database()) as log:
        assert log.add(trial(0)) and log.sound()
        postgresql.stop()
        with pytest.raises(TuningLogError, match=r"postgresql://…: .*connect") as said:
            log.add(trial(1))
        assert len(str(said.value).splitlines()) == 1
        postgresql.start()
        assert log.add(trial(1)) and not log.add(trial(0))
        assert len(log.trials()) == 2


def test_what_is_replaced_is_replaced_once(postgresql) -> None:  # noqa: F811
    """Eight at once: each deletes and inserts, or finds none and inserts."""
    url, errors = postgresql.database(), []

    def work(number: int) -> None:
        try:
            with TuningLog.open(url) as log:
                for turn in range(10):
                    log.confirm(trial(number))
                    log.spend("a job", 1.0)
                    log.note_number("of a board", turn)
                    log.add(trial(turn, status="cancelled", times_ms=()))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with TuningLog.open(url) as log:
        assert log.spent("a job") == 80.0 and log.number("of a board") == 9.0
        assert len(log.decisions("native:1", "v")) == 1 and len(log.trials()) == 10


def test_one_that_stays_in_a_transaction(postgresql, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(tuning_log_database, "ALONE", tuning_log_database.ALONE.replace("'30s'", "'300ms'"))
    url = postgresql.database()
    refused = pytest.raises(TuningLogError, match="lock timeout")
    with TuningLog.open(url) as one, TuningLog.open(url) as other, one._begin(), refused:
        other.add(trial())


def test_no_driver(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tvmcompress\[postgresql\]'"):
        TuningLog.open("postgresql://127.0.0.1:9/db")


@pytest.mark.parametrize("url", ["nosuch://user:secret@host/db", "postgresql://user:secret@host:port/db"])
def test_a_password_is_not_shown(url: str) -> None:
    with pytest.raises(UsageError) as said:
        TuningLog.open(url)
    assert "secret" not in str(said.value)
