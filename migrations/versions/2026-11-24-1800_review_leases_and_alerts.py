"""Leases and verdicts of reviewers; alert rules, states, episodes, channels and deliveries.

One change, reversible, and never one that breaks the release that is still running: its workers insert review items
without a rank, which then is the moment they came.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '9ad83ca7b682'
down_revision = '3b6ec13efbf2'
branch_labels = None
depends_on = None


_REVIEWS_TRIGGER = """
CREATE TRIGGER reviews_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reviews
FOR EACH STATEMENT EXECUTE FUNCTION cmw_append_only()
"""


def upgrade() -> None:
    op.create_table('reviews',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('item_id', sa.Uuid(), nullable=False),
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('reviewer_id', sa.Uuid(), nullable=False),
    sa.Column('action', sa.Text(), nullable=False),
    sa.Column('verdict', sa.Text(), nullable=True),
    sa.Column('error_types', postgresql.ARRAY(sa.Text()), server_default='{}', nullable=False),
    sa.Column('spans', postgresql.JSONB(astext_type=sa.Text()), server_default='[]', nullable=False),
    sa.Column('correction', sa.Text(), nullable=True),
    sa.Column('note', sa.Text(), nullable=True),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('seconds', sa.Double(), nullable=True),
    sa.Column('lease_token', sa.Uuid(), nullable=True),
    sa.Column('undoes', sa.Uuid(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint("(action = 'verdict') = (verdict IS NOT NULL)", name=op.f('ck_reviews_verdict_given')),
    sa.CheckConstraint("action IN ('verdict','skip','escalate','undo')", name=op.f('ck_reviews_action')),
    sa.CheckConstraint("verdict IN ('correct','partially_correct','hallucinated','cannot_tell')", name=op.f('ck_reviews_verdict')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_reviews'))
    )
    op.create_index(op.f('ix_reviews_project_id_event_id'), 'reviews', ['project_id', 'event_id'], unique=False)
    op.create_index(op.f('ix_reviews_project_id_id'), 'reviews', ['project_id', 'id'], unique=False)
    op.create_index('uq_reviews_lease', 'reviews', ['item_id', 'lease_token'], unique=True, postgresql_where=sa.text('undoes IS NULL'))
    op.create_index('uq_reviews_undoes', 'reviews', ['undoes'], unique=True)
    op.create_table('alert_rules',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('metric', sa.Text(), server_default='cmer', nullable=False),
    sa.Column('scopes', postgresql.ARRAY(sa.Text()), nullable=False),
    sa.Column('match', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.Column('threshold', sa.Double(), nullable=True),
    sa.Column('multiple', sa.Double(), nullable=True),
    sa.Column('window_seconds', sa.Integer(), nullable=False),
    sa.Column('for_seconds', sa.Integer(), server_default='0', nullable=False),
    sa.Column('keep_firing_seconds', sa.Integer(), server_default='600', nullable=False),
    sa.Column('repeat_seconds', sa.Integer(), server_default='14400', nullable=False),
    sa.Column('min_n', sa.Integer(), server_default='50', nullable=False),
    sa.Column('min_coverage', sa.Double(), server_default='0.95', nullable=False),
    sa.Column('severity', sa.Text(), nullable=False),
    sa.Column('channel_ids', postgresql.ARRAY(sa.Uuid()), server_default='{}', nullable=False),
    sa.Column('is_enabled', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('is_default', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('version', sa.Integer(), server_default='1', nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("kind IN ('threshold','baseline','no_data')", name=op.f('ck_alert_rules_kind')),
    sa.CheckConstraint("metric IN ('cmer','uer')", name=op.f('ck_alert_rules_metric')),
    sa.CheckConstraint("severity IN ('info','warning','critical')", name=op.f('ck_alert_rules_severity')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_alert_rules_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_alert_rules'))
    )
    op.create_index(op.f('ix_alert_rules_project_id'), 'alert_rules', ['project_id'], unique=False)
    op.create_table('alert_transitions',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('rule_id', sa.Uuid(), nullable=False),
    sa.Column('slice_key', sa.Text(), nullable=False),
    sa.Column('slice', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('alert_id', sa.Uuid(), nullable=True),
    sa.Column('from_state', sa.Text(), nullable=False),
    sa.Column('to_state', sa.Text(), nullable=False),
    sa.Column('bucket', sa.DateTime(timezone=True), nullable=False),
    sa.Column('evidence', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.Column('reason', sa.Text(), server_default='', nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_alert_transitions_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_alert_transitions'))
    )
    op.create_index(op.f('ix_alert_transitions_project_id_id'), 'alert_transitions', ['project_id', 'id'], unique=False)
    op.create_index(op.f('ix_alert_transitions_rule_id_slice_key_id'), 'alert_transitions', ['rule_id', 'slice_key', 'id'], unique=False)
    op.create_table('alerts',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('rule_id', sa.Uuid(), nullable=False),
    sa.Column('rule_name', sa.Text(), nullable=False),
    sa.Column('rule_version', sa.Integer(), nullable=False),
    sa.Column('severity', sa.Text(), nullable=False),
    sa.Column('slice_key', sa.Text(), nullable=False),
    sa.Column('slice', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('fired_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('resolved_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_told_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('evidence', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_alerts_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_alerts'))
    )
    op.create_index(op.f('ix_alerts_project_id_id'), 'alerts', ['project_id', 'id'], unique=False)
    op.create_index('uq_alerts_open', 'alerts', ['rule_id', 'slice_key'], unique=True, postgresql_where=sa.text('resolved_at IS NULL'))
    op.create_table('channels',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('sealed_config', sa.LargeBinary(), nullable=False),
    sa.Column('hint', sa.Text(), nullable=False),
    sa.Column('min_severity', sa.Text(), server_default='info', nullable=False),
    sa.Column('disabled_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('disabled_reason', sa.Text(), nullable=True),
    sa.Column('last_ok_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_error_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('next_send_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("kind IN ('slack','pagerduty','webhook')", name=op.f('ck_channels_kind')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_channels_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_channels'))
    )
    op.create_index(op.f('ix_channels_project_id'), 'channels', ['project_id'], unique=False)
    op.create_table('silences',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('rule_id', sa.Uuid(), nullable=True),
    sa.Column('match', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.Column('starts_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('ends_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_silences_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_silences'))
    )
    op.create_index(op.f('ix_silences_project_id_ends_at'), 'silences', ['project_id', 'ends_at'], unique=False)
    op.create_table('sink_messages',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('headers', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_sink_messages_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_sink_messages'))
    )
    op.create_index(op.f('ix_sink_messages_project_id_id'), 'sink_messages', ['project_id', 'id'], unique=False)
    op.create_table('alert_states',
    sa.Column('rule_id', sa.Uuid(), nullable=False),
    sa.Column('slice_key', sa.Text(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('slice', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('since', sa.DateTime(timezone=True), nullable=False),
    sa.Column('evaluated_bucket', sa.DateTime(timezone=True), nullable=False),
    sa.Column('alert_id', sa.Uuid(), nullable=True),
    sa.Column('evidence', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.Column('reason', sa.Text(), server_default='', nullable=False),
    sa.CheckConstraint("state IN ('ok','pending','firing','recovering','no_data','insufficient')", name=op.f('ck_alert_states_state')),
    sa.ForeignKeyConstraint(['rule_id'], ['alert_rules.id'], name=op.f('fk_alert_states_rule_id_alert_rules'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('rule_id', 'slice_key', name=op.f('pk_alert_states'))
    )
    op.create_index(op.f('ix_alert_states_project_id_state'), 'alert_states', ['project_id', 'state'], unique=False)
    op.create_table('deliveries',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('channel_id', sa.Uuid(), nullable=False),
    sa.Column('alert_id', sa.Uuid(), nullable=True),
    sa.Column('transition_id', sa.Uuid(), nullable=True),
    sa.Column('sequence', sa.BigInteger(), sa.Identity(always=False), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('notice', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('sealed_config', sa.LargeBinary(), nullable=True),
    sa.Column('state', sa.Text(), server_default='pending', nullable=False),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('lease_token', sa.Uuid(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_status', sa.Integer(), nullable=True),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('delivered_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("kind IN ('firing','repeat','resolved','test')", name=op.f('ck_deliveries_kind')),
    sa.CheckConstraint("state IN ('pending','delivered','dead','superseded')", name=op.f('ck_deliveries_state')),
    sa.ForeignKeyConstraint(['channel_id'], ['channels.id'], name=op.f('fk_deliveries_channel_id_channels'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_deliveries_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_deliveries')),
    sa.UniqueConstraint('transition_id', 'channel_id', name=op.f('uq_deliveries_transition_id_channel_id'))
    )
    op.create_index(op.f('ix_deliveries_alert_id'), 'deliveries', ['alert_id'], unique=False)
    op.create_index(op.f('ix_deliveries_channel_id_alert_id_sequence'), 'deliveries', ['channel_id', 'alert_id', 'sequence'], unique=False)
    op.create_index(op.f('ix_deliveries_next_at'), 'deliveries', ['next_at'], unique=False, postgresql_where=sa.text("state = 'pending'"))
    op.create_index(op.f('ix_deliveries_project_id_id'), 'deliveries', ['project_id', 'id'], unique=False)
    op.add_column('review_items', sa.Column('rank', sa.Double(), server_default=sa.text('extract(epoch FROM now())'), nullable=False))
    op.add_column('review_items', sa.Column('skips', sa.Integer(), server_default='0', nullable=False))
    op.add_column('review_items', sa.Column('leased_by', sa.Uuid(), nullable=True))
    op.add_column('review_items', sa.Column('lease_token', sa.Uuid(), nullable=True))
    op.add_column('review_items', sa.Column('leased_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('review_items', sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True))
    op.add_column('review_items', sa.Column('done_at', sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE review_items SET rank = extract(epoch FROM created_at) - 86400 * priority")
    op.drop_index('ix_review_items_open', table_name='review_items')
    op.create_index('ix_review_items_escalated', 'review_items', ['project_id', 'rank', 'id'], unique=False, postgresql_where=sa.text("state = 'escalated'"))
    op.create_index('ix_review_items_held', 'review_items', ['project_id', 'leased_by'], unique=False, postgresql_where=sa.text('leased_by IS NOT NULL'))
    op.create_index('ix_review_items_next', 'review_items', ['project_id', 'rank', 'id'], unique=False, postgresql_where=sa.text("state IN ('open', 'leased')"))
    op.execute(_REVIEWS_TRIGGER)


def downgrade() -> None:
    op.drop_index('ix_review_items_next', table_name='review_items', postgresql_where=sa.text("state IN ('open', 'leased')"))
    op.drop_index('ix_review_items_held', table_name='review_items', postgresql_where=sa.text('leased_by IS NOT NULL'))
    op.drop_index('ix_review_items_escalated', table_name='review_items', postgresql_where=sa.text("state = 'escalated'"))
    op.create_index(op.f('ix_review_items_open'), 'review_items', ['project_id', sa.literal_column('priority DESC'), 'id'], unique=False, postgresql_where=sa.text("state IN ('open', 'leased')"))
    op.drop_column('review_items', 'done_at')
    op.drop_column('review_items', 'lease_until')
    op.drop_column('review_items', 'leased_at')
    op.drop_column('review_items', 'lease_token')
    op.drop_column('review_items', 'leased_by')
    op.drop_column('review_items', 'skips')
    op.drop_column('review_items', 'rank')
    op.drop_index(op.f('ix_deliveries_project_id_id'), table_name='deliveries')
    op.drop_index(op.f('ix_deliveries_next_at'), table_name='deliveries', postgresql_where=sa.text("state = 'pending'"))
    op.drop_index(op.f('ix_deliveries_channel_id_alert_id_sequence'), table_name='deliveries')
    op.drop_index(op.f('ix_deliveries_alert_id'), table_name='deliveries')
    op.drop_table('deliveries')
    op.drop_index(op.f('ix_alert_states_project_id_state'), table_name='alert_states')
    op.drop_table('alert_states')
    op.drop_index(op.f('ix_sink_messages_project_id_id'), table_name='sink_messages')
    op.drop_table('sink_messages')
    op.drop_index(op.f('ix_silences_project_id_ends_at'), table_name='silences')
    op.drop_table('silences')
    op.drop_index(op.f('ix_channels_project_id'), table_name='channels')
    op.drop_table('channels')
    op.drop_index('uq_alerts_open', table_name='alerts', postgresql_where=sa.text('resolved_at IS NULL'))
    op.drop_index(op.f('ix_alerts_project_id_id'), table_name='alerts')
    op.drop_table('alerts')
    op.drop_index(op.f('ix_alert_transitions_rule_id_slice_key_id'), table_name='alert_transitions')
    op.drop_index(op.f('ix_alert_transitions_project_id_id'), table_name='alert_transitions')
    op.drop_table('alert_transitions')
    op.drop_index(op.f('ix_alert_rules_project_id'), table_name='alert_rules')
    op.drop_table('alert_rules')
    op.drop_index('uq_reviews_undoes', table_name='reviews')
    op.drop_index('uq_reviews_lease', table_name='reviews', postgresql_where=sa.text('undoes IS NULL'))
    op.drop_index(op.f('ix_reviews_project_id_id'), table_name='reviews')
    op.drop_index(op.f('ix_reviews_project_id_event_id'), table_name='reviews')
    op.drop_table('reviews')
