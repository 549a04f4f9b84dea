"""References of checkers: kept whole, one per checker row, and collected from the first traffic where a bundle has none.

One change, reversible, and never one that breaks the release that is still running: what it does not know has defaults.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = 'c41d0b7e5a93'
down_revision = '9ad83ca7b682'
branch_labels = None
depends_on = None


# Counted under the version in force at the time.
_NOTE_POLICY = """
UPDATE checks c SET policy_version = coalesce((
    SELECT max(p.version) FROM policy_versions p WHERE p.project_id = c.project_id AND p.created_at <= c.created_at
), 1) WHERE c.outcome = 'scored' AND c.score IS NULL
"""
# A checker whose reference was replaced has two rows; before, a name could have one only.
_ONE_NAME_EACH = """
UPDATE checkers c SET name = name || '@' || bundle_reference
WHERE EXISTS (SELECT FROM checkers o WHERE o.name = c.name AND o.id < c.id)
"""


def upgrade() -> None:
    op.add_column('checkers', sa.Column('bundle_reference', sa.Text(), server_default='', nullable=False))
    op.add_column('checkers', sa.Column('logit_scale', sa.Double(), nullable=True))
    op.add_column('checkers', sa.Column('logit_bias', sa.Double(), nullable=True))
    op.execute("UPDATE checkers SET bundle_reference = coalesce(reference_version, '')")
    op.drop_constraint('uq_checkers_name', 'checkers', type_='unique')
    op.create_unique_constraint('uq_checkers_name_bundle_reference', 'checkers', ['name', 'bundle_reference'])
    op.create_table('checker_references',
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('version', sa.Text(), nullable=False),
    sa.Column('data', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['checker_id'], ['checkers.id'], name=op.f('fk_checker_references_checker_id_checkers')),
    sa.PrimaryKeyConstraint('checker_id', 'version', name=op.f('pk_checker_references'))
    )
    op.create_table('reference_samples',
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('content', sa.Uuid(), nullable=False),
    sa.Column('prompt_type', sa.Text(), nullable=False),
    sa.Column('own', postgresql.ARRAY(sa.Double()), nullable=False),
    sa.Column('mismatched', postgresql.ARRAY(sa.Double()), nullable=False),
    sa.ForeignKeyConstraint(['checker_id'], ['checkers.id'], name=op.f('fk_reference_samples_checker_id_checkers')),
    sa.PrimaryKeyConstraint('checker_id', 'content', name=op.f('pk_reference_samples'))
    )
    op.add_column('checks', sa.Column('prompt_similarity', sa.Double(), nullable=True))
    op.add_column('checks', sa.Column('policy_version', sa.Integer(), nullable=True))
    op.create_index(
        'ix_checks_undecided', 'checks', ['checker_id', 'event_id'], unique=False,
        postgresql_where=sa.text("outcome = 'scored' AND score IS NULL"),
    )
    op.execute(_NOTE_POLICY)


def downgrade() -> None:
    op.drop_index('ix_checks_undecided', table_name='checks')
    op.drop_column('checks', 'policy_version')
    op.drop_column('checks', 'prompt_similarity')
    op.drop_table('reference_samples')
    op.drop_table('checker_references')
    op.execute(_ONE_NAME_EACH)
    op.drop_constraint('uq_checkers_name_bundle_reference', 'checkers', type_='unique')
    op.create_unique_constraint('uq_checkers_name', 'checkers', ['name'])
    op.drop_column('checkers', 'logit_bias')
    op.drop_column('checkers', 'logit_scale')
    op.drop_column('checkers', 'bundle_reference')
