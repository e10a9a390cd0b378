from detectron2.modeling.meta_arch.dense import DenseDetector


class RetinaNet(DenseDetector):
    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        cls, box = self.normalised(pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        return {"loss_cls": cls, "loss_box_reg": box}
