"""Reviews without the checker's word, invitations into a project, and refused sign-ins counted by the minute.

One change, reversible, and never one that breaks the release that is still running.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '1c7e94b0a3d6'
down_revision = '8f20c6d1a94b'
branch_labels = None
depends_on = None

ROLES = "role IN ('viewer','reviewer','lead','engineer','admin')"


def upgrade() -> None:
    op.add_column('projects', sa.Column('blind_since', sa.DateTime(timezone=True), nullable=True))
    op.add_column('reviews', sa.Column('is_blind', sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        'invitations',
        sa.Column('token_hash', sa.LargeBinary(), nullable=False),
        sa.Column('project_id', sa.Uuid(), nullable=False),
        sa.Column('login', sa.Text(), nullable=False),
        sa.Column('name', sa.Text(), nullable=False),
        sa.Column('role', sa.Text(), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
        sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(ROLES, name=op.f('ck_invitations_role')),
        sa.ForeignKeyConstraint(
            ['project_id'], ['projects.id'], name=op.f('fk_invitations_project_id_projects'), ondelete='CASCADE'
        ),
        sa.PrimaryKeyConstraint('token_hash', name=op.f('pk_invitations')),
        sa.UniqueConstraint('project_id', 'login', name=op.f('uq_invitations_project_id_login')),
    )
    op.create_table(
        'refused_sign_ins',
        sa.Column('user_id', sa.Uuid(), nullable=False),
        sa.Column('minute', sa.DateTime(timezone=True), nullable=False),
        sa.Column('tries', sa.Integer(), nullable=False),
        sa.Column('address', sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint('user_id', 'minute', name=op.f('pk_refused_sign_ins')),
    )


def downgrade() -> None:
    op.drop_table('refused_sign_ins')
    op.drop_table('invitations')
    op.drop_column('reviews', 'is_blind')
    op.drop_column('projects', 'blind_since')
