"""Prepare the stores of a study, the folds of each setting, and the views for teachers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.features.folds import make_folds, make_teacher_view
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.design import FOLD, Setting, Study
from antigram.studies.compare.jobs import FoldData, StoreData

__all__ = ["make_all_folds", "prepare_data", "store_name", "teacher_labels"]


def store_name(study: Study, name: str) -> str:
    """Return the name of the store that a study prepares for one of its data."""
    return f"{study.name}-{name}"


def prepare_data(
    workspace: Workspace, study: Study, on_message: OnMessage
) -> dict[str, FeatureStore]:
    """Prepare, or open, the stores of a study.

    Raises:
        InputError: a corpus is missing, or an argument of `prepare_corpus` is unknown.
        StoredDataError: a store is damaged.
    """
    from antigram.studies.preparing import prepare_corpus

    stores = {}
    for name, wanted in study.data.items():
        if "store" in wanted:
            stores[name] = FeatureStore(workspace.store(str(wanted["store"]), on_message))
            continue
        options = dict(wanted)
        corpus = str(options.pop("corpus"))
        prepared = prepare_corpus(
            workspace, corpus, name=store_name(study, name), on_message=on_message, **options
        )
        stores[name] = prepared.store
    return stores


def teacher_labels(study: Study, setting: Setting) -> list[str]:
    """Return the labels of teachers that are trained on the folds of a setting."""
    arms = [arm for arm in study.arms_of(setting).values() if arm.needs_teacher]
    names = {study.teacher_of(arm) for arm in arms} | {arm.first for arm in arms if arm.first}
    teachers = [study.teachers[name] for name in sorted(names)]
    return list(dict.fromkeys(t.task for t in teachers if t.data == FOLD))


def make_all_folds(
    workspace: Workspace,
    study: Study,
    stores: Mapping[str, FeatureStore],
    beside: Mapping[str, FeatureStore] | None = None,
) -> dict[str, list[FoldData]]:
    """Make the folds of each setting and the views of their teachers.

    Args:
        workspace: where jobs look up stores by name.
        study: the study, with its settings.
        stores: the stores of the study's data, whose folders the jobs will read.
        beside: the same stores in another folder, if the folds are not to be made beside them.

    Returns:
        Setting -> its folds.
    """
    return {
        name: _folds(
            workspace,
            study,
            setting,
            (beside or stores)[setting.data],
            stores[setting.data].path.parent,
        )
        for name, setting in study.settings.items()
    }


def _folds(
    workspace: Workspace, study: Study, setting: Setting, store: FeatureStore, folder: Path
) -> list[FoldData]:
    """Make the folds of one setting; jobs name folds outside of the workspace by their paths."""
    inside = folder.resolve() == workspace.features.resolve()

    def data_of(view: FeatureStore) -> StoreData:
        name = view.name if inside else str(folder.resolve() / f"{view.name}.zarr")
        return StoreData(name, view.fingerprint)

    seed = study.fold_seed
    paths = make_folds(store, setting.folds, seed=seed) if setting.folds else [store.path]
    made = []
    for path in paths:
        fold = FeatureStore(path)
        teachers = {
            label: data_of(FeatureStore(make_teacher_view(fold, label, seed=seed)))
            for label in teacher_labels(study, setting)
        }
        made.append(FoldData(data_of(fold), teachers))
    return made
