from detectron2.modeling.meta_arch.dense import DenseDetector


class FCOS(DenseDetector):
    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness=None):
        cls, box = self.normalised(pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        return {"loss_fcos_cls": cls, "loss_fcos_loc": box, "loss_fcos_ctr": box * 0}
