use super::*;

#[test]
fn health_has_the_members_of_9_1_6() {
    let health = HealthBody {
        status: "ok".into(),
        service: "agent-relay-listen".into(),
        version: "9.1.6".into(),
        uptime_ms: 1,
        workspace_id: "ws_1".into(),
        default_workspace_id: None,
        memberships: vec![Membership { workspace_id: "ws_1".into(), workspace_alias: None, is_default: true }],
        agent_count: 2,
        pending_delivery_count: 3,
        ws_connections: 4,
        memory_mb: 5,
        relaycast_connected: true,
        node_connected: true,
        node_state: "online".into(),
        node_delivery: NodeDelivery { token_present: true, connected: true },
        dead_letter_count: 6,
    };
    assert_eq!(
        body(&health),
        json!({
            "status": "ok", "service": "agent-relay-listen", "version": "9.1.6", "uptimeMs": 1,
            "workspaceId": "ws_1", "defaultWorkspaceId": null,
            "memberships": [{"workspace_id": "ws_1", "is_default": true}],
            "agentCount": 2, "pendingDeliveryCount": 3, "wsConnections": 4, "memoryMb": 5,
            "relaycastConnected": true, "nodeConnected": true, "nodeState": "online",
            "nodeDelivery": {"tokenPresent": true, "connected": true}, "deadLetterCount": 6,
        })
    );
}

#[test]
fn agent_rows_write_null_for_what_is_unknown() {
    let row = AgentRow {
        name: "a".into(),
        runtime: "pty".into(),
        provider: None,
        cli: Some("claude".into()),
        model: None,
        session_id: None,
        team: None,
        channels: vec!["general".into()],
        parent: Some("Dashboard".into()),
        pid: Some(7),
        worker_pid: Some(7),
        last_activity_ms: 9,
        last_activity_at: "1970-01-01T00:00:00Z".into(),
        context_budget_pct: None,
        readiness: "ready".into(),
        blocked_by: None,
        current_state: "working".into(),
        pending_messages: 0,
    };
    assert_eq!(
        body(&row),
        json!({
            "name": "a", "runtime": "pty", "provider": null, "cli": "claude", "model": null, "sessionId": null,
            "team": null, "channels": ["general"], "parent": "Dashboard", "pid": 7, "workerPid": 7,
            "last_activity_ms": 9, "last_activity_at": "1970-01-01T00:00:00Z", "context_budget_pct": null, "readiness": "ready", "blocked_by": null,
            "current_state": "working", "pending_messages": 0,
        })
    );
}

#[test]
fn sent_bodies_leave_out_the_other_way() {
    let sent = SentBody {
        success: true,
        event_id: "http_1".into(),
        delivered: Some(1),
        relaycast_published: None,
        local: true,
        message_id: None,
        workspace_id: Some("w".into()),
        workspace_alias: None,
        targets: vec!["a".into()],
    };
    assert_eq!(
        body(&sent),
        json!({"success": true, "event_id": "http_1", "delivered": 1, "local": true, "workspace_id": "w",
               "workspace_alias": null, "targets": ["a"]})
    );
}

#[test]
fn a_gap_ends_just_before_what_follows() {
    assert_eq!(
        replay_gap(3, 11, 7),
        json!({"kind": "replay_gap", "requestedSinceSeq": 3, "oldestAvailable": 11, "seq": 10, "droppedCount": 7})
    );
}
