"""History decided again under a later policy version: how far it has come, and its counts beside those of the day.

One change, reversible, and never one that breaks the release that is still running.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = 'e7a1c9b45d20'
down_revision = 'c4f1a6d20e77'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('redecisions',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('policy_version', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_event_id', sa.Uuid(), nullable=False),
    sa.Column('seen', sa.Integer(), server_default='0', nullable=False),
    sa.Column('total', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_redecisions_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('project_id', 'policy_version', name=op.f('pk_redecisions'))
    )
    op.create_table('redecided_5m',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('bucket', sa.DateTime(timezone=True), nullable=False),
    sa.Column('endpoint', sa.Text(), nullable=False),
    sa.Column('prompt_type', sa.Text(), nullable=False),
    sa.Column('customer', sa.Text(), nullable=False),
    sa.Column('model', sa.Text(), nullable=False),
    sa.Column('model_version', sa.Text(), nullable=False),
    sa.Column('environment', sa.Text(), nullable=False),
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('policy_version', sa.Integer(), nullable=False),
    sa.Column('scored', sa.Integer(), server_default='0', nullable=False),
    sa.Column('unscorable', sa.Integer(), server_default='0', nullable=False),
    sa.Column('invalid_image', sa.Integer(), server_default='0', nullable=False),
    sa.Column('model_error', sa.Integer(), server_default='0', nullable=False),
    sa.Column('undecided', sa.Integer(), server_default='0', nullable=False),
    sa.Column('n', sa.Integer(), server_default='0', nullable=False),
    sa.Column('flagged', sa.Integer(), server_default='0', nullable=False),
    sa.Column('low', sa.Integer(), server_default='0', nullable=False),
    sa.Column('low_unconfirmed', sa.Integer(), server_default='0', nullable=False),
    sa.Column('late_scored', sa.Integer(), server_default='0', nullable=False),
    sa.Column('late_n', sa.Integer(), server_default='0', nullable=False),
    sa.Column('late_flagged', sa.Integer(), server_default='0', nullable=False),
    sa.Column('sim_hist', postgresql.ARRAY(sa.Integer()), nullable=False),
    sa.Column('score_hist', postgresql.ARRAY(sa.Integer()), nullable=False),
    sa.PrimaryKeyConstraint('project_id', 'bucket', 'endpoint', 'prompt_type', 'customer', 'model', 'model_version', 'environment', 'checker_id', 'policy_version', name=op.f('pk_redecided_5m'))
    )
    op.create_table('redecided_1h',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('bucket', sa.DateTime(timezone=True), nullable=False),
    sa.Column('endpoint', sa.Text(), nullable=False),
    sa.Column('prompt_type', sa.Text(), nullable=False),
    sa.Column('customer', sa.Text(), nullable=False),
    sa.Column('model', sa.Text(), nullable=False),
    sa.Column('model_version', sa.Text(), nullable=False),
    sa.Column('environment', sa.Text(), nullable=False),
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('policy_version', sa.Integer(), nullable=False),
    sa.Column('scored', sa.Integer(), server_default='0', nullable=False),
    sa.Column('unscorable', sa.Integer(), server_default='0', nullable=False),
    sa.Column('invalid_image', sa.Integer(), server_default='0', nullable=False),
    sa.Column('model_error', sa.Integer(), server_default='0', nullable=False),
    sa.Column('undecided', sa.Integer(), server_default='0', nullable=False),
    sa.Column('n', sa.Integer(), server_default='0', nullable=False),
    sa.Column('flagged', sa.Integer(), server_default='0', nullable=False),
    sa.Column('low', sa.Integer(), server_default='0', nullable=False),
    sa.Column('low_unconfirmed', sa.Integer(), server_default='0', nullable=False),
    sa.Column('late_scored', sa.Integer(), server_default='0', nullable=False),
    sa.Column('late_n', sa.Integer(), server_default='0', nullable=False),
    sa.Column('late_flagged', sa.Integer(), server_default='0', nullable=False),
    sa.Column('sim_hist', postgresql.ARRAY(sa.Integer()), nullable=False),
    sa.Column('score_hist', postgresql.ARRAY(sa.Integer()), nullable=False),
    sa.PrimaryKeyConstraint('project_id', 'bucket', 'endpoint', 'prompt_type', 'customer', 'model', 'model_version', 'environment', 'checker_id', 'policy_version', name=op.f('pk_redecided_1h'))
    )


def downgrade() -> None:
    op.drop_table('redecided_1h')
    op.drop_table('redecided_5m')
    op.drop_table('redecisions')
