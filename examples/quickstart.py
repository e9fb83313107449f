"""Search on scikit-learn's digits, look at the front, take the knee."""

import os

import autocompress as ac

result = ac.search("digits", trials=int(os.environ.get("EXAMPLE_TRIALS", "24")), epochs=6)
for point in result.front:
    print(
        f"trial {point.trial}: test accuracy {point.test_metrics['accuracy']:.4f}, "
        f"{point.ratios['bytes']:.2f} of the bytes"
    )
knee = result.pick("knee")
print("exported", knee.export("knee.pt2"))
