"""The recipe of the two adapters of `tiny`: a sketch, and the keypoints of faces.

    python -m mos_tiny.recipe.control.conditions sketch --out D     # pictures, captions, conditions
    python -m mos_tiny.recipe.latents --data D --vae common/mos_tiny/base/vae --out D/latents --keep
    python -m mos_tiny.recipe.control.train sketch --data D --out RUN

The same with `keypoints`. `artwork/keypoints.json` says where each style has eyes, mouth and head;
`artwork/keypoints.mjs` found it by drawing faces twice, with one part changed.
"""
