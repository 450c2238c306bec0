use tokio::sync::oneshot;
use tokio::task::yield_now;

use super::*;
use crate::doctor::Report;
use crate::inquiry::Inquiry;
use crate::status::SessionCounts;

/// What a request for `target` is answered: status and body.
async fn asked(questions: &Questions, target: &str) -> (StatusCode, serde_json::Value) {
    let request = hyper::Request::get(target).body(Body::empty()).unwrap();
    let mut router = questions.clone().router();
    let response = tower_call(&mut router, request).await;
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn tower_call(router: &mut Router, request: hyper::Request<Body>) -> Response {
    use hyper::service::Service as _;
    let service = hyper_util::service::TowerToHyperService::new(router.clone());
    service.call(request).await.unwrap()
}

fn questions() -> (Questions, tokio::sync::mpsc::Receiver<Inquiry>) {
    let status = AgentStatus {
        sessions: SessionCounts {
            peers: 2,
            established: 1,
        },
        ..AgentStatus::starting("a")
    };
    let (_, status) = watch::channel(Arc::new(status));
    let (inquiries, asked) = Inquiries::channel();
    (Questions::new(status, inquiries), asked)
}

/// Answers questions about the node, and says how many there were.
fn doctor_answers(mut asked: tokio::sync::mpsc::Receiver<Inquiry>) -> tokio::task::JoinHandle<usize> {
    tokio::spawn(async move {
        let mut count = 0;
        while let Some(inquiry) = asked.recv().await {
            let Inquiry::Examine { answer, .. } = inquiry else {
                panic!("{inquiry:?}")
            };
            count += 1;
            let report = Report {
                node: "a".into(),
                findings: vec![],
                probed: false,
            };
            let _ = answer.send(report);
        }
        count
    })
}

#[test]
fn a_question_is_asked_by_its_path_and_its_parameters() {
    let routes = RibRequest {
        table: RibTable::Received,
        peer: Some("fd00::1".parse().unwrap()),
        within: Some("10.65.0.0/16".parse().unwrap()),
    };
    for (question, target) in [
        (Question::Status(Peers::All), "/v1/status"),
        (
            Question::Status(Peers::Exceptional),
            "/v1/status?peers=exceptional",
        ),
        (Question::View, "/v1/view"),
        (Question::Doctor, "/v1/doctor"),
        (Question::Kernel, "/v1/kernel"),
        (Question::WrongRoutes, "/v1/route/wrong"),
        (Question::Configuration, "/v1/configuration"),
        (Question::PacketFilter, "/v1/packet-filter"),
        (
            Question::Explain("10.65.17.64/26".parse().unwrap()),
            "/v1/route/explain?destination=10.65.17.64%2F26",
        ),
        (
            Question::Routes(routes),
            "/v1/bgp/routes?table=received&peer=fd00%3A%3A1&within=10.65.0.0%2F16",
        ),
    ] {
        assert_eq!(question.target(), target);
    }
}

#[tokio::test]
async fn a_status_tells_the_time_at_which_it_was_asked_for() {
    let (questions, _asked) = questions();
    for target in ["/v1/status", "/v1/status?peers=exceptional"] {
        let before = Timestamp::now();
        let (status, body) = asked(&questions, target).await;
        assert_eq!(status, StatusCode::OK);
        let told: AgentStatus = serde_json::from_value(body).unwrap();
        let answered = told.answered.unwrap();
        assert!(before <= answered && answered <= Timestamp::now(), "{answered}");
        assert_eq!((told.node.as_str(), told.sessions.down()), ("a", 1));
    }
}

#[tokio::test]
async fn what_is_asked_for_reaches_the_one_who_knows_it() {
    let (questions, mut asked_for) = questions();
    let knows = tokio::spawn(async move {
        let Some(Inquiry::Speaker(crate::speaker::Query::Routes { request, answer })) =
            asked_for.recv().await
        else {
            panic!("not the routes")
        };
        answer.send(Ok(crate::ribs::RibRoutes::default())).unwrap();
        request
    });
    let request = RibRequest {
        table: RibTable::Advertised,
        peer: Some("172.18.0.12".parse().unwrap()),
        within: Some("10.65.0.0/16".parse().unwrap()),
    };
    let (status, body) = asked(&questions, &Question::Routes(request).target()).await;
    assert_eq!(
        (status, body),
        (StatusCode::OK, serde_json::json!({"routes": [], "leftOut": 0}))
    );
    assert_eq!(knows.await.unwrap(), request);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_in_words() {
    let (questions, _asked) = questions();
    for (target, words) in [
        (
            "/v1/status?peers=some",
            r#"peers is "some", and may be all or counted or exceptional"#,
        ),
        (
            "/v1/status?peer=a",
            r#""peer" is no parameter of this question; it has peers"#,
        ),
        (
            "/v1/doctor?fix",
            r#""fix" is no parameter of this question; it has none"#,
        ),
        (
            "/v1/route/explain",
            r#""" is neither an address such as 10.65.17.70 nor a range such as 10.65.17.64/26"#,
        ),
        (
            "/v1/bgp/routes?peer=b",
            r#"peer is "b", which is not an address such as 172.18.0.12"#,
        ),
        (
            "/v1/bgp/routes?table=worst",
            r#"table is "worst", and may be received or advertised or best"#,
        ),
    ] {
        let (status, body) = asked(&questions, target).await;
        assert_eq!(
            (status, body["reason"].as_str().unwrap()),
            (StatusCode::BAD_REQUEST, words),
            "{target}"
        );
    }
}

#[tokio::test]
async fn nothing_but_get_is_answered() {
    let (questions, _asked) = questions();
    for method in ["POST", "PUT", "DELETE"] {
        for path in [STATUS, DOCTOR, KERNEL, EXPLAIN, ROUTES] {
            let request = hyper::Request::builder().method(method).uri(path);
            let request = request.body(Body::empty()).unwrap();
            let response = tower_call(&mut questions.clone().router(), request).await;
            assert_eq!(
                response.status(),
                StatusCode::METHOD_NOT_ALLOWED,
                "{method} {path}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_are_answered_at_once_and_who_comes_then_is_asked_to_come_again() {
    let (questions, mut asked_for) = questions();
    let mut waiting = Vec::new();
    let mut answers = Vec::new();
    for _ in 0..AT_ONCE {
        let questions = questions.clone();
        waiting.push(tokio::spawn(async move { asked(&questions, DOCTOR).await }));
        let Some(Inquiry::Examine { answer, .. }) = asked_for.recv().await else {
            panic!("not the doctor")
        };
        answers.push(answer);
    }
    let (status, body) = asked(&questions, DOCTOR).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        body,
        serde_json::json!({"reason": "the agent is busy with 4 other questions: ask again", "retry": true})
    );
    // The status takes nobody's time, and is told all the same.
    assert_eq!(asked(&questions, STATUS).await.0, StatusCode::OK);
    let report = || Report {
        node: "a".into(),
        findings: vec![],
        probed: false,
    };
    for answer in answers {
        oneshot::Sender::send(answer, report()).unwrap();
    }
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().0, StatusCode::OK);
    }
    let doctor = doctor_answers(asked_for);
    assert_eq!(asked(&questions, DOCTOR).await.0, StatusCode::OK);
    drop(questions);
    assert_eq!(doctor.await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_place_rests_for_as_long_as_its_question_took() {
    let (questions, _asked) = questions();
    let work = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok::<_, Problem>("done")
    };
    assert!(questions.answer(work).await.is_ok());
    yield_now().await;
    assert_eq!(questions.places.available_permits(), AT_ONCE - 1);
    tokio::time::advance(Duration::from_millis(290)).await;
    yield_now().await;
    assert_eq!(questions.places.available_permits(), AT_ONCE - 1);
    tokio::time::advance(Duration::from_millis(20)).await;
    yield_now().await;
    assert_eq!(questions.places.available_permits(), AT_ONCE);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_taken_until_the_answer_is_read() {
    use http_body_util::BodyExt as _;

    let (questions, _asked) = questions();
    let long = "x".repeat(3 * PIECE);
    let answer = questions.answer(async move { Ok::<_, Problem>(long) }).await;
    let Ok(response) = answer else { panic!("refused") };
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(piece) = body.frame().await {
        assert_eq!(questions.places.available_permits(), AT_ONCE - 1);
        read += piece.unwrap().into_data().unwrap().len();
    }
    // With its quotes.
    assert_eq!(read, 3 * PIECE + 2);
    drop(body);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(questions.places.available_permits(), AT_ONCE);
}

#[tokio::test]
async fn what_became_of_the_peers_routes_is_counted_by_the_speaker_and_the_loop() {
    use crate::speaker::Query;
    use crate::status::PeerRoutes;

    let (questions, mut asked_for) = questions();
    let peer: IpAddr = "172.18.0.12".parse().unwrap();
    let counted = PeerRoutes {
        accepted: 3,
        programmed: 2,
    };
    let loops = tokio::spawn(async move {
        let Some(Inquiry::Speaker(Query::Count { answer })) = asked_for.recv().await else {
            panic!("not the speaker")
        };
        answer.send([(peer, 3)].into()).unwrap();
        let Some(Inquiry::Count { accepted, answer }) = asked_for.recv().await else {
            panic!("not the loop")
        };
        answer.send([(peer, counted)].into()).unwrap();
        // The loop ends here, and with it the answers.
        accepted
    });
    let target = Question::Status(Peers::Counted).target();
    let (_, body) = asked(&questions, &target).await;
    let told: AgentStatus = serde_json::from_value(body).unwrap();
    assert_eq!(told.peer_routes, [(peer, counted)].into());
    assert_eq!(loops.await.unwrap(), [(peer, 3)].into());
    let (status, body) = asked(&questions, &target).await;
    let told: AgentStatus = serde_json::from_value(body).unwrap();
    assert_eq!((status, told.node.as_str()), (StatusCode::OK, "a"));
    assert!(told.peer_routes.is_empty());
}

#[tokio::test]
async fn what_the_agent_goes_by_is_told_where_it_is_known() {
    let (questions, _asked) = questions();
    let (status, body) = asked(&questions, "/v1/configuration").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let questions = questions.going_by(Arc::default());
    let (status, body) = asked(&questions, "/v1/configuration").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["bgp"]["holdTime"], 90, "{body}");
}

#[tokio::test]
async fn of_the_routes_that_are_wrong_the_first_are_explained_and_the_others_counted() {
    let (questions, mut asked_for) = questions();
    let answers = tokio::spawn(async move {
        let mut explained = 0;
        while let Some(inquiry) = asked_for.recv().await {
            match inquiry {
                Inquiry::Wrong { answer } => {
                    let all = (0..MOST_EXPLAINED + 2).map(|n| format!("10.65.{n}.0/26").parse().unwrap());
                    let _ = answer.send(all.collect());
                }
                Inquiry::Speaker(crate::speaker::Query::Explain { answer, .. }) => drop(answer.send(None)),
                Inquiry::Explain {
                    destination, answer, ..
                } => {
                    explained += 1;
                    let _ = answer.send(Explanation::example(destination));
                }
                other => panic!("{other:?}"),
            }
        }
        explained
    });
    let (status, body) = asked(&questions, "/v1/route/wrong").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let told: WrongRoutes = serde_json::from_value(body).unwrap();
    assert_eq!((told.explanations.len(), told.left_out), (MOST_EXPLAINED, 2));
    assert_eq!(told.explanations[1].destination, "10.65.1.0/26".parse().unwrap());
    drop(questions);
    assert_eq!(answers.await.unwrap(), MOST_EXPLAINED);
}
