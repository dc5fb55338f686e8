//! The schema, one file a step. `control-plane migrate` brings a database up to date.

use sea_orm_migration::prelude::*;

mod m20261122_000001_foundation;
mod m20261122_000002_policies;
mod m20261124_000003_incarnations;
mod m20261124_000004_certificates;
mod m20261124_000005_leases;
mod m20261124_000007_node_service;
mod m20261124_000008_placing;
mod m20261124_000009_activity;
mod m20261124_000011_log_tails;
mod m20261124_000020_sweep;
mod m20261124_000021_restored;
mod m20261128_000022_own_orphans;
mod m20261128_000023_bans;
mod m20261128_000024_drain_forced;
mod m20261129_000025_steps;
mod m20261129_000026_one_lookup;
mod m20261129_000027_key_by_hash;

/// All steps, in order.
#[derive(Debug)]
pub(super) struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_foundation::Migration),
            Box::new(m20261122_000002_policies::Migration),
            Box::new(m20261124_000003_incarnations::Migration),
            Box::new(m20261124_000004_certificates::Migration),
            Box::new(m20261124_000005_leases::Migration),
            Box::new(m20261124_000007_node_service::Migration),
            Box::new(m20261124_000008_placing::Migration),
            Box::new(m20261124_000009_activity::Migration),
            Box::new(m20261124_000011_log_tails::Migration),
            Box::new(m20261124_000020_sweep::Migration),
            Box::new(m20261124_000021_restored::Migration),
            Box::new(m20261128_000022_own_orphans::Migration),
            Box::new(m20261128_000023_bans::Migration),
            Box::new(m20261128_000024_drain_forced::Migration),
            Box::new(m20261129_000025_steps::Migration),
            Box::new(m20261129_000026_one_lookup::Migration),
            Box::new(m20261129_000027_key_by_hash::Migration),
        ]
    }
}
