"""Show networks of a study: errors to listen to, and their maps as points.

Of a setting, these are the baseline's network with the best validation and, of the same fold and
seed, that of anti-transfer. Predictions are in the database; the store, the recordings and the runs
may be gone, or on another machine. What is gone is left out, and the report says so: no study
fails because of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import BASELINE, Study
from antigram.studies.compare.jobs import Job, Plan
from antigram.studies.compare.results import SettingResult, validation_of
from antigram.studies.figures.embeddings import embedding_panels
from antigram.studies.figures.panels import draw_panels
from antigram.studies.report import Figure, Part, Sound, Sounds
from antigram.studies.report.recordings import Recordings
from antigram.studies.report.segments import (
    class_names,
    predict_segments,
    recordings_text,
    source_text,
    wav_of,
)

__all__ = ["network_parts"]

_SETTINGS = 3  # that are shown, so that the report stays small
_HEARD = 3  # errors of each network
_LONGEST_S = 4.0  # of an error that is embedded
_BYTES = 700_000  # of all recordings of a report; in the page they take a third more
_POINTS = 200  # segments whose maps are shown


def network_parts(
    study: Study,
    results: Mapping[str, SettingResult],
    plan: Plan,
    database: Database,
    workspace: Workspace,
) -> dict[str, list[Part]]:
    """Return parts of the report about two networks of each setting, for up to three settings.

    Args:
        study: the study.
        results: setting -> its results.
        plan: all jobs of the study, which are done.
        database: database with the predictions.
        workspace: runs, stores and corpora are looked up in it.
    """
    shown = list(results)[:_SETTINGS]
    jobs = {job.key: job for job in plan.jobs}
    found = {}
    for name in shown:
        pair = _pair(results[name], jobs, database)
        setting = _Setting(
            before=f"{name}: " if name else "",
            pair=pair,
            against=study.settings[name].against,
            longest_bytes=_BYTES // (_HEARD * len(pair) * len(shown)),
            database=database,
            workspace=workspace,
        )
        found[name] = setting.parts()
    return found


def _pair(result: SettingResult, jobs: Mapping[str, Job], database: Database) -> dict[str, Job]:
    """Return the trainings of the baseline and of anti-transfer, or of the first other arm."""
    cells = result.chosen[BASELINE]
    best = max(cells, key=lambda at: validation_of(cells[at], database))
    others = [arm for arm in result.chosen if arm != BASELINE and " " not in arm]
    names = [BASELINE, *(["at"] if "at" in others else others[:1])]
    return {arm: jobs[result.chosen[arm][best].key] for arm in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """One setting, of which parts are made.

    Attributes:
        before: name of the setting, put before captions; may be empty.
        pair: arm -> job of its training.
        against: label that should not matter.
        longest_bytes: most bytes of a recording.
        database: database with the predictions.
        workspace: runs, stores and corpora are looked up in it.
    """

    before: str
    pair: Mapping[str, Job]
    against: str
    longest_bytes: int
    database: Database
    workspace: Workspace

    def parts(self) -> list[Part]:
        """Return the parts, or a note with the reason for a part of which something is gone."""
        return [
            self._guarded(self.sounds, "errors to listen to"),
            self._guarded(self.components, "maps of the deepest layer"),
        ]

    def _guarded(self, make: Callable[[], Part], what: str) -> Part:
        try:
            return make()
        except (InputError, StoredDataError, OSError, torch.OutOfMemoryError) as error:
            return Sounds(caption=f"{self.before}{what}", text=f"Cannot be shown: {error}")

    def sounds(self) -> Part:
        """Return the errors in which each network gives the true class the least probability."""
        store, task = self._store()
        kept = {arm: self.database.predictions(job.key, "test") for arm, job in self.pair.items()}
        recordings, names = Recordings(store, self.workspace), store.classes[task]
        said = {
            arm: dict(zip(each["row"].tolist(), each["predicted"].tolist(), strict=True))
            for arm, each in kept.items()
        }
        longest_s = min(_LONGEST_S, self.longest_bytes / (2 * store.recipe.sample_rate))
        sounds = []
        for arm, each in kept.items():
            wrong = np.flatnonzero(each["predicted"] != each["true"])
            for i in wrong[np.argsort(each["probability"][wrong], kind="stable")][:_HEARD]:
                row, true = int(each["row"][i]), names[each["true"][i]]
                others = "".join(
                    f"; {other}: {names[of_row[row]]}"
                    for other, of_row in said.items()
                    if other != arm and row in of_row
                )
                text = (
                    f"{task} {true}, predicted by {arm} as {names[each['predicted'][i]]} "
                    f"({true}: {each['probability'][i]:.1%}){others}. {source_text(store, row)}"
                )
                sounds.append(Sound(text=text, wav=wav_of(store, row, recordings, longest_s)))
        texts = [
            f"{arm}: {np.count_nonzero(each['predicted'] != each['true'])} of {len(each['row'])} "
            "test segments are predicted wrongly."
            for arm, each in kept.items()
        ]
        texts.append(
            f"Networks of one fold and seed ({', '.join(job.name for job in self.pair.values())}); "
            "shown are the errors in which the true class is least probable."
        )
        texts += recordings_text(store, recordings, sounds) if sounds else []
        caption = f"{self.before}errors to listen to"
        return Sounds(caption=caption, text=" ".join(texts), sounds=sounds)

    def components(self) -> Part:
        """Return the principal components of the deepest layer of each network, by two labels."""
        store, task = self._store()
        rows, count = [], 0
        for arm, job in self.pair.items():
            ckpt = self.workspace.runs / job.name / "best.pt"
            predicted = predict_segments(ckpt, store, task, torch.device("cpu"), _POINTS)
            if not predicted.is_drawable:
                raise InputError(f"{ckpt}: its maps cannot be drawn, or there are too few segments")
            labels = [task, *([self.against] if self.against in store.classes else [])]
            marked = class_names(store, predicted.rows, labels)
            rows.append(embedding_panels(predicted.embeddings, marked, arm))
            count = len(predicted.rows)
        return Figure(
            caption=f"{self.before}maps of the deepest layer, averaged over positions, of {count} "
            "test segments: first two principal components of each network.",
            rows=draw_panels(rows).rows,
        )

    def _store(self) -> tuple[FeatureStore, str]:
        """Open the store that the networks were trained on; return it, and the task."""
        job = self.pair[BASELINE]
        path = self.workspace.named(self.workspace.features, job.data, "feature store")
        return FeatureStore(path), job.task
