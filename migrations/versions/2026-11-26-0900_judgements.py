"""What a judge said of suspicious outputs, and what was spent on asking it.

One change, reversible, and never one that breaks the release that is still running.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = 'c4f1a6d20e77'
down_revision = 'c41d0b7e5a93'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('judge_spend',
    sa.Column('day', sa.Date(), nullable=False),
    sa.Column('calls', sa.Integer(), server_default='0', nullable=False),
    sa.Column('tokens', sa.BigInteger(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('day', name=op.f('pk_judge_spend'))
    )
    op.create_table('judgements',
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('judge', sa.Text(), nullable=True),
    sa.Column('p_yes', sa.Double(), nullable=True),
    sa.Column('claims', postgresql.JSONB(astext_type=sa.Text()), server_default='[]', nullable=False),
    sa.Column('reason', sa.Text(), server_default='', nullable=False),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('lease_token', sa.Uuid(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('calls', sa.Integer(), server_default='0', nullable=False),
    sa.Column('tokens', sa.Integer(), server_default='0', nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('judged_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("(state = 'judged') = (p_yes IS NOT NULL)", name=op.f('ck_judgements_judged_has_p_yes')),
    sa.CheckConstraint("state IN ('waiting','judged','failed','skipped')", name=op.f('ck_judgements_state')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_judgements_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('event_id', 'checker_id', name=op.f('pk_judgements'))
    )
    op.create_index(op.f('ix_judgements_next_at'), 'judgements', ['next_at'], unique=False, postgresql_where=sa.text("state = 'waiting'"))
    op.create_index(op.f('ix_judgements_project_id_event_id'), 'judgements', ['project_id', 'event_id'], unique=False)


def downgrade() -> None:
    op.drop_table('judgements')
    op.drop_table('judge_spend')
