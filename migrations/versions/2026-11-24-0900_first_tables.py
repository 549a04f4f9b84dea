"""The first tables: events split by day from the start, because retrofitting that is the expensive way.

One change, reversible, and never one that breaks the release that is still running.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '3b6ec13efbf2'
down_revision = None
branch_labels = None
depends_on = None


# Element-wise sum of two histograms of one length. A loop that skips the zeros of `b`, which a batch's increments mostly
# are: three times as fast as summing unnested pairs.
_ADD = """
CREATE FUNCTION cmw_add(a int[], b int[]) RETURNS int[] LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS
$$
DECLARE y int; i int := 0;
BEGIN
    FOREACH y IN ARRAY b LOOP
        i := i + 1;
        IF y <> 0 THEN a[i] := a[i] + y; END IF;
    END LOOP;
    RETURN a;
END
$$
"""

_APPEND_ONLY = """
CREATE FUNCTION cmw_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
"""

_AUDIT_TRIGGER = """
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION cmw_append_only()
"""


def upgrade() -> None:
    op.create_table('audit_log',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=True),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('action', sa.Text(), nullable=False),
    sa.Column('target', sa.Text(), nullable=False),
    sa.Column('details', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit_log'))
    )
    op.create_table('checkers',
    sa.Column('id', sa.Integer(), sa.Identity(always=False), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('label', sa.Text(), nullable=False),
    sa.Column('is_demo', sa.Boolean(), nullable=False),
    sa.Column('reference_version', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_checkers')),
    sa.UniqueConstraint('name', name=op.f('uq_checkers_name'))
    )
    op.create_table('checks',
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('outcome', sa.Text(), nullable=False),
    sa.Column('similarity', sa.Double(), nullable=True),
    sa.Column('score', sa.Double(), nullable=True),
    sa.Column('mismatch_percentile', sa.Double(), nullable=True),
    sa.Column('claims', postgresql.JSONB(astext_type=sa.Text()), server_default='[]', nullable=False),
    sa.Column('reasons', postgresql.ARRAY(sa.Text()), server_default='{}', nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint("outcome IN ('scored','unscorable','invalid_image','model_error','quarantined')", name=op.f('ck_checks_outcome')),
    sa.PrimaryKeyConstraint('event_id', 'checker_id', name=op.f('pk_checks')),
    postgresql_partition_by='RANGE (event_id)'
    )
    op.create_table('decisions',
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('policy_version', sa.Integer(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('flagged', sa.Boolean(), nullable=False),
    sa.Column('low_similarity', sa.Boolean(), nullable=False),
    sa.Column('conf_threshold', sa.Double(), nullable=False),
    sa.Column('sim_threshold', sa.Double(), nullable=False),
    sa.Column('decided_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('event_id', 'checker_id', 'policy_version', name=op.f('pk_decisions')),
    postgresql_partition_by='RANGE (event_id)'
    )
    op.create_index('ix_decisions_flagged', 'decisions', ['project_id', 'event_id'], unique=False, postgresql_where=sa.text('flagged'))
    op.create_table('event_bodies',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('prompt', sa.Text(), nullable=False),
    sa.Column('output', sa.Text(), nullable=False),
    sa.Column('tokens', postgresql.ARRAY(sa.Text()), nullable=True),
    sa.Column('logprobs', postgresql.ARRAY(sa.Double()), nullable=True),
    sa.Column('request_id', sa.Text(), nullable=True),
    sa.Column('response_id', sa.Text(), nullable=True),
    sa.Column('trace_id', sa.Text(), nullable=True),
    sa.Column('text_sanitized', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('metadata', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_event_bodies')),
    postgresql_partition_by='RANGE (id)'
    )
    op.create_table('events',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('event_key', sa.Text(), nullable=True),
    sa.Column('received_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('occurred_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('is_late', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('images', postgresql.ARRAY(sa.Text()), nullable=False),
    sa.Column('geo_p', sa.Double(), nullable=True),
    sa.Column('mean_p', sa.Double(), nullable=True),
    sa.Column('min_p', sa.Double(), nullable=True),
    sa.Column('n_tokens', sa.Integer(), nullable=True),
    sa.Column('confidence_status', sa.Text(), nullable=False),
    sa.Column('sample_rate', sa.Double(), nullable=True),
    sa.Column('endpoint', sa.Text(), server_default='', nullable=False),
    sa.Column('prompt_type', sa.Text(), server_default='', nullable=False),
    sa.Column('customer', sa.Text(), server_default='', nullable=False),
    sa.Column('model', sa.Text(), server_default='', nullable=False),
    sa.Column('model_version', sa.Text(), server_default='', nullable=False),
    sa.Column('environment', sa.Text(), server_default='', nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_events')),
    postgresql_partition_by='RANGE (id)'
    )
    op.create_index(op.f('ix_events_project_id_endpoint_id'), 'events', ['project_id', 'endpoint', 'id'], unique=False)
    op.create_index(op.f('ix_events_project_id_id'), 'events', ['project_id', 'id'], unique=False)
    op.create_index(op.f('ix_events_received_at'), 'events', ['received_at'], unique=False, postgresql_using='brin')
    op.create_table('heartbeats',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_heartbeats'))
    )
    op.create_table('projects',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('slug', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_projects')),
    sa.UniqueConstraint('slug', name=op.f('uq_projects_slug'))
    )
    op.create_table('rollups_1h',
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
    sa.PrimaryKeyConstraint('project_id', 'bucket', 'endpoint', 'prompt_type', 'customer', 'model', 'model_version', 'environment', 'checker_id', 'policy_version', name=op.f('pk_rollups_1h')),
    postgresql_with={'fillfactor': 60}
    )
    op.create_table('rollups_5m',
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
    sa.PrimaryKeyConstraint('project_id', 'bucket', 'endpoint', 'prompt_type', 'customer', 'model', 'model_version', 'environment', 'checker_id', 'policy_version', name=op.f('pk_rollups_5m')),
    postgresql_with={'fillfactor': 60}
    )
    op.create_table('users',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('login', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('password_hash', sa.Text(), nullable=True),
    sa.Column('disabled_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_users')),
    sa.UniqueConstraint('login', name=op.f('uq_users_login'))
    )
    op.create_table('work',
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('bucket', sa.DateTime(timezone=True), nullable=False),
    sa.Column('priority', sa.SmallInteger(), server_default='0', nullable=False),
    sa.Column('state', sa.SmallInteger(), server_default='0', nullable=False),
    sa.Column('attempts', sa.SmallInteger(), server_default='0', nullable=False),
    sa.Column('not_before', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_token', sa.Uuid(), nullable=True),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('endpoint', sa.Text(), server_default='', nullable=False),
    sa.Column('prompt_type', sa.Text(), server_default='', nullable=False),
    sa.Column('customer', sa.Text(), server_default='', nullable=False),
    sa.Column('model', sa.Text(), server_default='', nullable=False),
    sa.Column('model_version', sa.Text(), server_default='', nullable=False),
    sa.Column('environment', sa.Text(), server_default='', nullable=False),
    sa.PrimaryKeyConstraint('event_id', name=op.f('pk_work')),
    postgresql_with={'fillfactor': 70, 'autovacuum_vacuum_scale_factor': 0, 'autovacuum_vacuum_threshold': 5000}
    )
    op.create_index(op.f('ix_work_priority_event_id'), 'work', ['priority', 'event_id'], unique=False)
    op.create_table('api_keys',
    sa.Column('id', sa.Text(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('secret_hash', sa.LargeBinary(), nullable=False),
    sa.Column('scopes', postgresql.ARRAY(sa.Text()), nullable=False),
    sa.Column('user_id', sa.Uuid(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_api_keys_project_id_projects'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_api_keys_user_id_users'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_api_keys'))
    )
    op.create_table('console_sessions',
    sa.Column('token_hash', sa.LargeBinary(), nullable=False),
    sa.Column('user_id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('last_seen_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_console_sessions_user_id_users'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('token_hash', name=op.f('pk_console_sessions'))
    )
    op.create_index(op.f('ix_console_sessions_user_id'), 'console_sessions', ['user_id'], unique=False)
    op.create_table('images',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('sha256', sa.Text(), nullable=False),
    sa.Column('size_bytes', sa.Integer(), nullable=False),
    sa.Column('format', sa.Text(), nullable=False),
    sa.Column('width', sa.Integer(), nullable=False),
    sa.Column('height', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_images_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('project_id', 'sha256', name=op.f('pk_images'))
    )
    op.create_table('ingest_keys',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('key_hash', sa.LargeBinary(), nullable=False),
    sa.Column('body_hash', sa.LargeBinary(), nullable=False),
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_ingest_keys_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('project_id', 'key_hash', name=op.f('pk_ingest_keys'))
    )
    op.create_table('memberships',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.Uuid(), nullable=False),
    sa.Column('role', sa.Text(), nullable=False),
    sa.CheckConstraint("role IN ('viewer','reviewer','lead','engineer','admin')", name=op.f('ck_memberships_role')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_memberships_project_id_projects'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_memberships_user_id_users'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('project_id', 'user_id', name=op.f('pk_memberships'))
    )
    op.create_table('policy_versions',
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('version', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('rules', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_policy_versions_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('project_id', 'version', name=op.f('pk_policy_versions'))
    )
    op.create_table('review_items',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('project_id', sa.Uuid(), nullable=False),
    sa.Column('event_id', sa.Uuid(), nullable=False),
    sa.Column('checker_id', sa.Integer(), nullable=False),
    sa.Column('policy_version', sa.Integer(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('inclusion_probability', sa.Double(), server_default='1', nullable=False),
    sa.Column('priority', sa.Double(), nullable=False),
    sa.Column('reasons', postgresql.ARRAY(sa.Text()), nullable=False),
    sa.Column('state', sa.Text(), server_default='open', nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint("kind IN ('flagged','low_similarity_unconfirmed','audit')", name=op.f('ck_review_items_kind')),
    sa.CheckConstraint("state IN ('open','leased','done','escalated')", name=op.f('ck_review_items_state')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_review_items_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_review_items')),
    sa.UniqueConstraint('project_id', 'event_id', name=op.f('uq_review_items_project_id_event_id'))
    )
    op.create_index('ix_review_items_open', 'review_items', ['project_id', sa.literal_column('priority DESC'), 'id'], unique=False, postgresql_where=sa.text("state IN ('open', 'leased')"))
    op.create_table('sign_in_links',
    sa.Column('token_hash', sa.LargeBinary(), nullable=False),
    sa.Column('user_id', sa.Uuid(), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('used_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_sign_in_links_user_id_users'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('token_hash', name=op.f('pk_sign_in_links'))
    )
    for table in ("rollups_5m", "rollups_1h"):
        for column in ("sim_hist", "score_hist"):
            # 2 kB of small numbers: compressing them on every update costs more than it saves.
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE PLAIN")
    for statement in (_ADD, _APPEND_ONLY, _AUDIT_TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table('sign_in_links')
    op.drop_index('ix_review_items_open', table_name='review_items', postgresql_where=sa.text("state IN ('open', 'leased')"))
    op.drop_table('review_items')
    op.drop_table('policy_versions')
    op.drop_table('memberships')
    op.drop_table('ingest_keys')
    op.drop_table('images')
    op.drop_index(op.f('ix_console_sessions_user_id'), table_name='console_sessions')
    op.drop_table('console_sessions')
    op.drop_table('api_keys')
    op.drop_index(op.f('ix_work_priority_event_id'), table_name='work')
    op.drop_table('work')
    op.drop_table('users')
    op.drop_table('rollups_5m')
    op.drop_table('rollups_1h')
    op.drop_table('projects')
    op.drop_table('heartbeats')
    op.drop_index(op.f('ix_events_received_at'), table_name='events', postgresql_using='brin')
    op.drop_index(op.f('ix_events_project_id_id'), table_name='events')
    op.drop_index(op.f('ix_events_project_id_endpoint_id'), table_name='events')
    op.drop_table('events')
    op.drop_table('event_bodies')
    op.drop_index('ix_decisions_flagged', table_name='decisions', postgresql_where=sa.text('flagged'))
    op.drop_table('decisions')
    op.drop_table('checks')
    op.drop_table('checkers')
    op.drop_table('audit_log')
    op.execute("DROP FUNCTION cmw_append_only()")
    op.execute("DROP FUNCTION cmw_add(int[], int[])")
