"""Alerts of one incident share a group, and its messages are one; an alert without a group stands alone, as before.

One change, reversible, and never one that breaks the release that is still running: what that one inserts has no group.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '8f20c6d1a94b'
down_revision = '5d2e8b61c9f4'
branch_labels = None
depends_on = None

BEFORE = "kind IN ('firing','repeat','resolved','test')"
AFTER = "kind IN ('firing','repeat','update','resolved','test')"


def upgrade() -> None:
    op.add_column('alerts', sa.Column('group_id', sa.Uuid(), nullable=True))
    op.add_column('alerts', sa.Column('told_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('alerts', sa.Column('told_slices', sa.Integer(), server_default='0', nullable=False))
    op.create_index(op.f('ix_alerts_group_id'), 'alerts', ['group_id'])
    op.drop_constraint(op.f('ck_deliveries_kind'), 'deliveries', type_='check')
    op.create_check_constraint(op.f('ck_deliveries_kind'), 'deliveries', AFTER)


def downgrade() -> None:
    op.execute("UPDATE deliveries SET kind = 'repeat' WHERE kind = 'update'")
    op.drop_constraint(op.f('ck_deliveries_kind'), 'deliveries', type_='check')
    op.create_check_constraint(op.f('ck_deliveries_kind'), 'deliveries', BEFORE)
    op.drop_index(op.f('ix_alerts_group_id'), table_name='alerts')
    op.drop_column('alerts', 'told_slices')
    op.drop_column('alerts', 'told_at')
    op.drop_column('alerts', 'group_id')
