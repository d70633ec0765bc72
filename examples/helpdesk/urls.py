"""Where the views are."""

from django.urls import path

from helpdesk import views

urlpatterns = [
    path("health", views.health),
    path("session", views.session),
    path("tickets", views.tickets),
    path("tickets/export", views.export),
    path("tickets/<int:number>", views.ticket),
    path("tickets/<int:number>/replies", views.replies),
]
