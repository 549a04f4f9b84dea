"""Pictures that events name by their address, and events that wait for them.

One change, reversible, and never one that breaks the release that is still running.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '5d2e8b61c9f4'
down_revision = 'b83d5e20c17f'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('image_fetches',
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('position', sa.SmallInteger(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('attempts', sa.SmallInteger(), server_default='0', nullable=False),
    sa.Column('next_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_token', sa.Uuid(), nullable=True),
    sa.Column('sha256', sa.Text(), nullable=True),
    sa.Column('reason', sa.Text(), server_default='', nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('settled_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("(state = 'fetched') = (sha256 IS NOT NULL)", name=op.f('ck_image_fetches_fetched_has_sha256')),
    sa.CheckConstraint("state IN ('waiting','fetched','failed','skipped')", name=op.f('ck_image_fetches_state')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_image_fetches_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('event_id', 'position', name=op.f('pk_image_fetches'))
    )
    op.create_index(op.f('ix_image_fetches_next_at'), 'image_fetches', ['next_at'], unique=False, postgresql_where=sa.text("state = 'waiting'"))
    op.create_index(op.f('ix_image_fetches_settled_at'), 'image_fetches', ['settled_at'], unique=False, postgresql_where=sa.text("state = 'failed'"))
    op.add_column('work', sa.Column('refused', postgresql.ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column('work', 'refused')
    op.drop_table('image_fetches')
