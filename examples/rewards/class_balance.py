"""A set reward: a classifier should see all classes equally often.

torchrun sit_rl/train.py --reward fd examples/rewards/class_balance.py:ClassBalance=0.5
"""

from fastfid.features.registry import build_extractor

CLASSIFIER = build_extractor("fashion-a")


class ClassBalance:
    def features(self, images):  # uint8 [n, c, h, w] → class probabilities [n, K], all that the reward reads of images
        return CLASSIFIER.outputs(images)["logits"].softmax(1)

    def prepare(self, rows, labels=None):  # what `features` returned for the N images of the set
        return BalancedSet(rows.double())


class BalancedSet:  # its distance: the squared distance of the mean probabilities from equal shares
    def __init__(self, rows):
        self.rows, self.count, self.total = rows, len(rows), rows.sum(0)
        self.distance = float(self.of(self.total, self.count))

    def of(self, total, count):
        return (total / count - 1 / self.rows.shape[1]).square().sum(-1)

    def change(self, removed, added, labels=None):  # [B, m_r] and [B, m_a, K] → [B]; m_a may be 0
        total = self.total - self.rows[removed].sum(1) + added.double().sum(1)
        return self.of(total, self.count - removed.shape[1] + added.shape[1]) - self.distance

    def leave_one_out(self):  # [N]
        return self.of(self.total - self.rows, self.count - 1) - self.distance
