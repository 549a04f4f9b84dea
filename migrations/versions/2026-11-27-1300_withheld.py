"""Checks that the policy in force could not decide, until a later version does; and deciding again that was stopped.

One change, reversible, and never one that breaks the release that is still running.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = 'b83d5e20c17f'
down_revision = 'f09c2b7d6e11'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('withheld',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('policy_version', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('checker_id', sa.Integer(), autoincrement=False, nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_withheld_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('project_id', 'policy_version', 'event_id', 'checker_id', name=op.f('pk_withheld'))
    )
    op.add_column('redecisions', sa.Column('cancelled_at', sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column('redecisions', 'cancelled_at')
    op.drop_table('withheld')
