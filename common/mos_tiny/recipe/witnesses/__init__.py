"""Witnesses: classifiers that name what a picture shows, learnt from composed pictures only.

They never learn from drawings. Their accuracy on real pictures through the autoencoder is the
ceiling that stands beside every score.

    classifier.py         the linear classifier, and the three rules that fit it
    features.py           what a classifier reads of a picture
    witness.py            one question's features and classifier; how witnesses learn and are kept
    faces.py              the detector of eyes and mouth, the only witness that is a network
    lessons.py            labelled pictures to learn from
    of_trials.py          the witnesses of the judge of `tiny`
    of_prompts.py         the witnesses of text alignment in the identity bench
"""
